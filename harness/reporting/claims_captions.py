"""Claims of text-to-image profiles (C9, and C6's CLIP score), and at which guidance the other claims are read there."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps

import numpy as np
import pandas as pd

from harness.reporting.claims_evidence import (
    ALTERNATING,
    INSTANT,
    MANY,
    Estimate,
    Estimates,
    Evidence,
    Finding,
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
)
from harness.reporting.claims_process import inception_score_gains
from harness.reporting.intervals import CONFIDENCE, half_width
from harness.reporting.records import text_to_image

Rule = Callable[[Evidence], Finding]
PAPERS_WEIGHT = 1.0  # the guidance at which C6 reads the CLIP score, or the weight closest to it


def at_shared_guidance(rule: Rule) -> Rule:
    """A rule of unguided rows; of a text-to-image profile it judges the rows of the one weight that its students share.

    Rows of any other weight are not in the table that it sees. Without exactly one such weight it is not tested.
    """

    @wraps(rule)
    def judged(evidence: Evidence) -> Finding:
        table = evidence.table
        if not text_to_image(table).any():
            return rule(evidence)
        shared = shared_guidance(table)
        if len(shared) != 1:
            told = ", ".join(f"{weight:g}" for weight in shared) or "none"
            return Finding(
                Verdict.UNTESTED,
                f"The students do not share exactly one guidance weight (shared: {told}), and rows of different "
                "guidance are not compared.",
            )
        weight = table["guidance"].astype(float)
        # for the rule, rows of this weight are the plain ones
        rows = table[weight.isna() | (weight == shared[0])].assign(guidance=weight.where(weight.isna(), 0.0))
        finding = rule(replace(evidence, table=rows))
        told = f"At guidance w = {shared[0]:g} alone, of students and teachers alike. "
        if finding.verdict is Verdict.UNTESTED:
            told += "Not everything that it compares was measured there. "
        return replace(finding, evidence=told + finding.evidence)

    return judged


def shared_guidance(table: pd.DataFrame) -> list[float]:
    """The guidance weights of every method's default students; one never guided counts where no other is guided."""
    students = table[~table["method"].isin(["teacher", "real-data"]) & (table["variant"] == "default")]
    weights = [{float(w) for w in rows["guidance"].dropna()} for _, rows in students.groupby("method", sort=False)]
    weights = [of for of in weights if any(of)] or weights
    return sorted(set.intersection(*weights)) if weights else []


def guidance_raises_scores(evidence: Evidence) -> Finding:
    """C6: Inception score of the teacher with the largest weight, and its CLIP score with w = 1, against none."""
    table = evidence.table
    inception, told = inception_score_gains(table)
    clip, paths = clip_gains(table)
    if not text_to_image(table).any():
        told += " The CLIP score is not tested: these data have classes, not captions."
        statistic, interval = differences(inception), difference_intervals(inception)
        return Finding(above(inception, by_seeds=True), told, listed({"": statistic}), listed({"": interval}))
    parts = {"Inception score": inception} | {"CLIP score": clip}
    verdict = all_of([above(clip, by_seeds=True), *[above(inception, by_seeds=True)] * bool(inception)])
    told = told if inception else "The Inception score was not measured."
    told += (
        f" CLIP score of one network of the teacher with guidance w = {PAPERS_WEIGHT:g}, or the weight closest to it, "
        f"against none, at the most steps. Holds if the {CONFIDENCE:.0%} intervals of both scores over images are "
        "apart and the guided one is higher on every backend, does not hold if they are apart and it is lower; the "
        f"interval of the gain is as wide as both together. Scores: {listed(paths)}."
    )
    shown = {name: differences(gains) for name, gains in parts.items()}
    intervals = {name: difference_intervals(gains) for name, gains in parts.items()}
    return Finding(verdict, told, listed(shown), listed(intervals))


def clip_gains(table: pd.DataFrame) -> tuple[dict[str, Estimate], dict[str, str]]:
    """By backend, steps and weight: the teacher's gain in CLIP score, with the sum of both half widths, and the scores.

    Of each backend the most steps with and without guidance, there the weight closest to 1, and the lowest seed.
    """
    teacher = table[(table["method"] == "teacher") & (table["variant"] == "default") & table["clip"].notna()]
    teacher = teacher.astype({"guidance": "float64", "clip_se": "float64"})
    gains, paths = {}, {}
    for backend, own in teacher.groupby("backend", sort=False):
        alike = [part[part["seed"] == part["seed"].min()] for _, part in own.groupby(["sampler", "steps"])]
        both = [part for part in alike if {*(part["guidance"] > 0)} == {True, False}]
        if not both:
            continue
        most = max(both, key=lambda part: int(part["steps"].iloc[0]))
        most = most.assign(away=(most["guidance"] - PAPERS_WEIGHT).abs()).sort_values(["away", "guidance"])
        guided, plain = most[most["guidance"] > 0].iloc[0], most[most["guidance"] == 0].iloc[0]
        n = int(plain["n_samples"])
        halves = [half_width(row["clip_se"] ** 2, n - 1) for row in (guided, plain)]
        half = None if np.isnan(halves).any() else sum(halves)
        name = f"{backend}, {int(plain['steps'])} steps, w = {guided['guidance']:g}"
        gains[name] = Estimate(float(guided["clip"] - plain["clip"]), half, f"{n:,} images")
        paths[name] = " against ".join(
            f"{row['clip']:.2f} ± {own_half:.2f}" for row, own_half in zip((guided, plain), halves, strict=True)
        )
    return gains, paths


FID, CLIP = "FID over the base model's", "CLIP score minus the base model's"
INSTANT_FID, INSTANT_CLIP = "FID of instant over alternating", "CLIP score of instant minus alternating"


def beats_its_base_model(evidence: Evidence) -> Finding:
    """C9: FID and CLIP score of the alternating 8-step student against its base model, and of instant against it."""
    table = evidence.table
    if not table["clip"].notna().any():
        return Finding(Verdict.UNTESTED, "Needs captioned images and CLIP scores: another profile's.")
    ours = table[(table["method"] == ALTERNATING) & (table["variant"] == "default") & (table["steps"] == MANY)]
    teacher = table[(table["method"] == "teacher") & (table["sampler"] == "ancestral")]
    base = {float(rows["guidance"].iloc[0]): int(rows["steps"].max()) for _, rows in teacher.groupby("guidance")}
    found = {w: _against_base(table, w, base[w]) for w in sorted(set(ours["guidance"].astype(float))) if w in base}
    if not found:
        told = (
            f"Needs an alternating {MANY}-step student, and a teacher sampled with the guidance that it was trained on."
        )
        return Finding(Verdict.UNTESTED, told)
    # the claim is of both algorithms: at the guidance that both were distilled with, where there is any
    judged = {w: of for w, of in found.items() if of[INSTANT_FID] or of[INSTANT_CLIP]} or found
    fid = all_of(below(of[FID], by_seeds=True) for of in judged.values())
    clip = all_of(above(of[CLIP], by_seeds=True) for of in judged.values())
    worse = all_of(
        any_of([above(of[INSTANT_FID], by_seeds=True), below(of[INSTANT_CLIP], by_seeds=True)])
        for of in judged.values()
    )
    read = ", ".join(f"{base[w]} steps for w = {w:g}" for w in found)
    beside = ", ".join(f"{w:g}" for w in found if w not in judged)
    beside = f" Beside it, without a part in the verdict: w = {beside}." if beside else ""
    told = (
        "Base model: the teacher with its most ancestral steps and the guidance that the student was distilled from, "
        f"{read}. FID of the alternating {MANY}-step student over the base model's, geometric mean over seeds: the "
        f"interval lies below 1 ({fid}). CLIP score minus the base model's: it lies above 0 ({clip}). Instant against "
        "alternating, with as many steps and the same guidance: the interval of the ratio of FIDs lies above 1, or "
        f"that of the difference of CLIP scores below 0 ({worse}).{beside} {given(table)}"
    )
    shown, intervals = {}, {}
    for w, parts in found.items():
        for name, of in parts.items():
            key, is_ratio = f"{name}, w = {w:g}", name in (FID, INSTANT_FID)
            shown[key] = ratios(of) if is_ratio else differences(of)
            intervals[key] = ratio_intervals(of) if is_ratio else difference_intervals(of)
    return Finding(all_of([fid, clip, worse]), told, listed(shown), listed(intervals))


def _against_base(table: pd.DataFrame, w: float, steps: int) -> dict[str, Estimates]:
    """The four comparisons of students distilled with guidance w; the base model takes so many steps."""
    found: dict[str, Estimates] = {}
    for column, log, own, other in (("fid", True, FID, INSTANT_FID), ("clip", False, CLIP, INSTANT_CLIP)):
        alternating, instant = (
            values(table, method, MANY, column=column, log=log, guidance=w) for method in (ALTERNATING, INSTANT)
        )
        base = values(table, "teacher", steps, column=column, log=log, guidance=w, sampler="ancestral")
        found |= {own: over_teacher(alternating, base), other: difference(instant, alternating)}
    return found
