"""Claims about FID and diversity (C1 to C5, C11). Each function says how it reads its claim."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd

from harness.reporting.claims_evidence import (
    ALTERNATING,
    INSTANT,
    MANY,
    UNREPEATED,
    Estimates,
    Evidence,
    Finding,
    Values,
    Verdict,
    above,
    all_of,
    any_of,
    below,
    difference,
    difference_intervals,
    differences,
    given,
    listed,
    over_teacher,
    ratio_intervals,
    ratios,
    values,
    within,
)
from harness.reporting.records import method_name, plain_teachers, text_to_image

CLOSE = 1.25  # two FIDs are close within this ratio
FAR = 0.05  # a gain in recall above this is "far more diverse"
RIVALS = ("progressive", "consistency-distillation")
AGREE = (
    f"by the interval where both sides have 3 seeds, else by a factor of {UNREPEATED:g} on at least two backends, "
    "which share their seed and noise"
)


def better_than_teacher(evidence: Evidence) -> Finding:
    """C1: the 8-step student against its teacher with the most ancestral steps."""
    table = evidence.table
    steps = max(plain_teachers(table)["steps"], default=0)
    student = values(table, ALTERNATING, MANY)
    found = over_teacher(student, values(table, "teacher", steps, sampler="ancestral"))
    ddim = over_teacher(student, values(table, "teacher", steps, sampler="ddim"))
    guided = "guided alike" if text_to_image(table).any() else "neither guided"
    told = (
        f"FID of the alternating {MANY}-step student over that of its teacher with the most ancestral steps, "
        f"{steps or 'unknown'}, {guided}; geometric mean over seeds. Holds if the interval lies below 1. Beside "
        f"it, without a part in the verdict, over that of as many DDIM steps. {given(table)}"
    )
    return _finding(below(found, by_seeds=True), told, {"": found} | ({"over DDIM": ddim} if ddim else {}))


def improves_with_steps(evidence: Evidence) -> Finding:
    """C2: FID at each step count over FID at the next smaller one, for both algorithms."""
    table, pairs = evidence.table, {}
    for method in (ALTERNATING, INSTANT):
        for fewer, more in pairwise(_steps(table, method)):
            name = f"{method.partition('/')[2]}, {more} over {fewer} steps"
            pairs[name] = difference(values(table, method, more), values(table, method, fewer))
    verdicts = {name: below(found, by_seeds=False) for name, found in pairs.items()}
    exceptions = [name for name, verdict in verdicts.items() if verdict is not Verdict.HOLDS]
    told = (
        f"FID over FID with the next smaller number of steps. Holds if every ratio is below 1, {AGREE}. "
        f"Exceptions: {'; '.join(exceptions) or 'none'}. {given(table)}"
    )
    return _finding(all_of(verdicts.values()), told, pairs)


def close_then_better(evidence: Evidence) -> Finding:
    """C3: alternating over instant, equivalent at 8 steps and lower below."""
    table, parts = evidence.table, {}
    for k in sorted({*_steps(table, ALTERNATING)} & {*_steps(table, INSTANT)}, reverse=True):
        parts[k] = difference(values(table, ALTERNATING, k), values(table, INSTANT, k))
    close = within(parts.get(MANY, {}), np.log(CLOSE))
    better = all_of(below(found, by_seeds=False) for k, found in parts.items() if k < MANY)
    told = (
        f"FID of alternating over that of instant. Close at {MANY} steps: the interval lies within {1 / CLOSE:.2f} to "
        f"{CLOSE:.2f} ({close}). Better below: every ratio is below 1, {AGREE} ({better}). {given(table)}"
    )
    return _finding(all_of([close, better]), told, {f"k = {k}": found for k, found in parts.items()})


def beats_its_rivals(evidence: Evidence) -> Finding:
    """C4: alternating against progressive and consistency distillation at 8 steps, against all others at 1 step."""
    table = evidence.table
    ours, ours_at_one = values(table, ALTERNATING, MANY), values(table, ALTERNATING, 1)
    rivals = {name: difference(ours, values(table, name, MANY)) for name in RIVALS}
    wins = all_of(below(found, by_seeds=True) for found in rivals.values())
    names = [name for name in dict.fromkeys(table["method"]) if name not in (ALTERNATING, INSTANT, "teacher")]
    others = {name: difference(values(table, name, 1), ours_at_one) for name in names}
    verdicts = {name: below(found, by_seeds=False) for name, found in others.items() if found}
    better = [method_name(name) for name, verdict in verdicts.items() if verdict is Verdict.HOLDS]
    beaten = any_of(verdicts.values())
    ours_passes = _passes(table, ALTERNATING)
    cost = {method_name(name): ratios(difference(ours_passes, _passes(table, name))) for name in RIVALS}
    told = (
        f"FID of alternating over that of its two rivals at {MANY} steps: both intervals lie below 1 ({wins}). Its "
        f"training passes over theirs: {listed(cost)}; a consistency model serves all step counts with its own. At 1 "
        f"step: one of {len(verdicts)} other methods has the lower FID, {AGREE} ({beaten}; better by that: "
        f"{', '.join(better) or 'none'}). {given(table)}"
    )
    parts = {f"over {method_name(name)}, k = {MANY}": found for name, found in rivals.items()}
    for name in sorted(verdicts, key=lambda name: _mean(others[name]))[:1]:
        parts[f"{method_name(name)} (the lowest) over alternating, k = 1"] = others[name]
    return _finding(all_of([wins, beaten]), told, parts)


def conditional_is_more_diverse(evidence: Evidence) -> Finding:
    """C5: recall and distance within a class, of z_s given z_t (default) against z_s without it."""
    table = evidence.table

    def gain(column: str, *, log: bool) -> Estimates:
        variants = ("default", "unconditional")
        found = [values(table, ALTERNATING, MANY, column=column, log=log, variant=v) for v in variants]
        return difference(*found)

    recall, distance = gain("recall", log=False), gain("class_distance", log=True)
    verdicts = [above(recall, FAR, by_seeds=True)] + [above(distance, by_seeds=True)] * bool(distance)
    told = (
        f"Alternating {MANY}-step students, z_s conditional on z_t against unconditional: recall, and mean feature "
        f"distance within a class{'' if distance else ' (not measured)'}. Holds if the interval of the gain in recall "
        f"lies above {FAR} and that of the ratio of distances above 1. {given(table)}"
    )
    statistic = {"gain in recall": differences(recall), "ratio of distances": ratios(distance)}
    interval = {"recall": difference_intervals(recall), "distances": ratio_intervals(distance)}
    return Finding(all_of(verdicts), told, listed(statistic), listed(interval))


def works_with_ddim(evidence: Evidence) -> Finding:
    """C11: students of DDIM transitions against the better of their teacher's samplers at as many steps."""
    table, parts = evidence.table, {}
    for k in _steps(table, ALTERNATING, "ddim")[::-1]:
        teachers = [values(table, "teacher", k, sampler=sampler) for sampler in ("ancestral", "ddim")]
        best = {name: pd.concat([of[name] for of in teachers if name in of]) for name in {*teachers[0], *teachers[1]}}
        best = {name: of.groupby(level=0).min() for name, of in best.items()}
        parts[k] = over_teacher(values(table, ALTERNATING, k, variant="ddim"), best)
    verdict = all_of(below(found, by_seeds=k == MANY) for k, found in parts.items())
    told = (
        "FID of the alternating student trained and sampled with DDIM transitions over that of its teacher with as "
        f"many steps, ancestral or DDIM, whichever is lower. Holds if it is below 1: at {MANY} steps by the interval, "
        f"with fewer {AGREE}. {given(table)}"
    )
    return _finding(verdict, told, {f"k = {k}": found for k, found in parts.items()})


def _steps(table: pd.DataFrame, method: str, variant: str = "default") -> list[int]:
    rows = table[(table["method"] == method) & (table["variant"] == variant)]
    return sorted({int(k) for k in rows["steps"]})


def _passes(table: pd.DataFrame, method: str) -> Values:
    return values(table, method, MANY, column="train_passes")


def _mean(estimates: Estimates) -> float:
    return float(np.mean([estimate.mean for estimate in estimates.values()]))


def _finding(verdict: Verdict, told: str, parts: Mapping[str, Estimates]) -> Finding:
    """A finding whose statistics are ratios of FIDs."""
    shown = {name: ratios(found) for name, found in parts.items()}
    return Finding(verdict, told, listed(shown), listed({name: ratio_intervals(of) for name, of in parts.items()}))
