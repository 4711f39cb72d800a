"""What claims are judged by: findings and verdicts, and differences over training seeds with their t-intervals.

Seeds are training seeds: each further one is a whole distillation. Images are never resampled, because duplicates bias
FID upwards.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import pandas as pd

from harness.reporting.intervals import half_width, welch_half_width
from harness.reporting.records import DASH

MIN_SEEDS = 3  # with fewer there is no interval
UNREPEATED = 1.25  # ratio of FIDs that decides without an interval, far outside of what seeds vary
MANY = 8  # the step count at which methods are compared over seeds
ALTERNATING, INSTANT = "moment-matching/alternating", "moment-matching/instant"


class Verdict(StrEnum):
    """What the evidence says of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    UNTESTED = "not tested"


@dataclass(frozen=True)
class Finding:
    """How a claim was read and measured, and what came out."""

    verdict: Verdict
    evidence: str
    statistic: str = DASH
    interval: str = DASH


@dataclass(frozen=True)
class Evidence:
    """Everything that a claim may ask for; what is empty leaves its claims untested."""

    table: pd.DataFrame
    """`records.frame` of all records."""
    instant: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """By run, the updates (n,) and equation-9 loss (n,) of instant moment matching."""
    implied: Mapping[int, float]
    """By step count, the total variation between the implied weights of DDPM and DDIM."""
    gradients: Mapping[str, float]
    """By backend, the relative distance between the student gradients of Algorithm 2 and Diff-Instruct at k = 1."""


@dataclass(frozen=True)
class Estimate:
    """A mean difference, half the width of its interval (None with too few seeds), and the seeds behind it."""

    mean: float
    half: float | None
    seeds: str

    @property
    def low(self) -> float:
        """The lower end of the interval; the estimate itself where there is none."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The upper end, likewise."""
        return self.mean + (self.half or 0.0)


Values = Mapping[str, "pd.Series[float]"]
"""By backend, numbers indexed by training seed."""
Estimates = Mapping[str, Estimate]
"""By backend."""


def values(
    table: pd.DataFrame,
    method: str,
    steps: int,
    *,
    column: str = "fid",
    log: bool = True,
    variant: str = "default",
    sampler: str | None = None,
    guidance: float = 0.0,
) -> Values:
    """One column of a setting, or its logarithm; backends that did not measure it are left out."""
    rows = table[(table["method"] == method) & (table["variant"] == variant) & (table["steps"] == steps)]
    rows = rows[rows["guidance"].astype(float).fillna(0.0) == guidance]
    if sampler is not None:
        rows = rows[rows["sampler"] == sampler]
    if column not in rows:
        return {}
    rows = rows.assign(value=rows[column].astype(float)).dropna(subset="value")
    shown = np.log(rows["value"]) if log else rows["value"]
    return {str(name): shown[part.index].set_axis(part["seed"]) for name, part in rows.groupby("backend", sort=False)}


def difference(first: Values, second: Values) -> dict[str, Estimate]:
    """Mean of the first minus mean of the second, on every backend of both, with Welch's t-interval over seeds."""
    found = {}
    for backend in [name for name in first if name in second]:
        a, b = first[backend].to_numpy(), second[backend].to_numpy()
        half = welch_half_width(a, b) if min(len(a), len(b)) >= MIN_SEEDS else None
        found[backend] = Estimate(float(a.mean() - b.mean()), half, f"{_seeds(len(a))} against {len(b)}")
    return found


def over_teacher(student: Values, teacher: Values) -> dict[str, Estimate]:
    """Mean of student minus its own teacher, on every backend of both, with Student's t-interval over seeds.

    A student without a teacher of its own seed comes from the teacher of the lowest seed.
    """
    found = {}
    for backend in [name for name in student if name in teacher]:
        own = teacher[backend].sort_index()
        a = (student[backend] - own.reindex(student[backend].index).fillna(own.iloc[0])).to_numpy()
        half = half_width(a.var(ddof=1) / len(a), len(a) - 1) if len(a) >= MIN_SEEDS else None
        given = "one teacher" if len(own) == 1 else f"{len(own)} teachers"
        found[backend] = Estimate(float(a.mean()), half, f"{_seeds(len(a))} of {given}")
    return found


def _seeds(n: int) -> str:
    return f"{n} seed{'s' * (n > 1)}"


def below(estimates: Estimates, bound: float = 0.0, *, by_seeds: bool) -> Verdict:
    """Whether a difference lies below a bound.

    Intervals decide where there are any: all below, or all above. Without any, `by_seeds` leaves it undecided;
    otherwise differences of logarithms decide where those of at least two backends all lie on one side by more than
    log(UNREPEATED). Backends share seed and noise, and are no replicates of one another: hence the margin.
    """
    if not estimates:
        return Verdict.UNTESTED
    deciding = _deciding(estimates, by_seeds=by_seeds)
    if deciding and all(estimate.high < bound for estimate in deciding):
        return Verdict.HOLDS
    if deciding and all(estimate.low > bound for estimate in deciding):
        return Verdict.FAILS
    return Verdict.UNDECIDED


def above(estimates: Estimates, bound: float = 0.0, *, by_seeds: bool) -> Verdict:
    """Whether a difference lies above a bound, judged as in `below`."""
    turned = {name: replace(estimate, mean=-estimate.mean) for name, estimate in estimates.items()}
    return below(turned, -bound, by_seeds=by_seeds)


def within(estimates: Estimates, margin: float) -> Verdict:
    """Whether the intervals lie within plus and minus a margin; those outside of it fail."""
    outside = [below(estimates, -margin, by_seeds=True), above(estimates, margin, by_seeds=True)]
    if Verdict.HOLDS in outside:
        return Verdict.FAILS
    return all_of({Verdict.FAILS: Verdict.HOLDS}.get(verdict, verdict) for verdict in outside)


def _deciding(estimates: Estimates, *, by_seeds: bool) -> list[Estimate]:
    with_interval = [estimate for estimate in estimates.values() if estimate.half is not None]
    if with_interval or by_seeds or len(estimates) < 2:
        return with_interval
    return [replace(estimate, half=float(np.log(UNREPEATED))) for estimate in estimates.values()]


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on all parts of a claim: one that fails decides, then one not tested, then one undecided."""
    found = set(verdicts) or {Verdict.UNTESTED}
    order = (Verdict.FAILS, Verdict.UNTESTED, Verdict.UNDECIDED, Verdict.HOLDS)
    return next(verdict for verdict in order if verdict in found)


def any_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on "one of these": one that holds decides; it fails if all fail."""
    found = set(verdicts) - {Verdict.UNTESTED} or {Verdict.UNTESTED}
    order = (Verdict.HOLDS, Verdict.UNTESTED, Verdict.UNDECIDED, Verdict.FAILS)
    return next(verdict for verdict in order if verdict in found)


def given(table: pd.DataFrame) -> str:
    """What the training seeds of students vary."""
    if table.loc[table["method"] == "teacher", "seed"].nunique() > 1:
        return "Seeds vary the teacher as well."
    return "Seeds are distillation seeds given one teacher."


def ratios(estimates: Estimates) -> str:
    """Differences of logarithms, as ratios: `jax 0.93, torch 0.95`."""
    return ", ".join(f"{name} {np.exp(estimate.mean):.2f}" for name, estimate in estimates.items())


def ratio_intervals(estimates: Estimates) -> str:
    """Their intervals, where there are any: `0.85 to 1.01 (jax, 3 seeds against 3)`."""
    return _intervals(estimates, lambda value: f"{np.exp(value):.2f}")


def differences(estimates: Estimates) -> str:
    """Differences with their sign: `jax +0.12`."""
    return ", ".join(f"{name} {estimate.mean:+.3f}" for name, estimate in estimates.items())


def difference_intervals(estimates: Estimates) -> str:
    """Their intervals, where there are any."""
    return _intervals(estimates, lambda value: f"{value:+.3f}")


def _intervals(estimates: Estimates, show: Callable[[float], str]) -> str:
    known = {name: estimate for name, estimate in estimates.items() if estimate.half is not None}
    return "; ".join(f"{show(e.low)} to {show(e.high)} ({name}, {e.seeds})" for name, e in known.items())


def listed(parts: Mapping[str, str]) -> str:
    """Named parts of a statistic or interval, the empty ones left out; a dash for none."""
    return "; ".join(f"{name}: {text}" if name else text for name, text in parts.items() if text) or DASH
