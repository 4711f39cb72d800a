"""Claims about sampling, training and cost (C6 to C8, C10, C12). Each function says how it reads its claim."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from harness.reporting.claims_evidence import (
    ALTERNATING,
    INSTANT,
    MANY,
    MIN_SEEDS,
    Estimate,
    Evidence,
    Finding,
    Verdict,
    below,
    difference,
    listed,
    ratios,
    values,
)
from harness.reporting.intervals import half_width
from harness.reporting.records import DASH
from harness.reporting.training_curves import SMOOTH, running_mean

SPLITS = 10  # of the images, over which the Inception score is averaged
MIN_POINTS = 20  # of a loss curve, for its shape to be judged
BRIEF = 0.25  # share of the training within which a brief rise peaks
RISE, FALL, STRAIGHT = 1.1, 0.1, 0.8  # peak over start, end over peak, R^2 of the logarithm after the peak
DIFFERENT = 0.05  # total variation from which two weightings differ
SAME = 1e-5  # relative distance of float32 gradients that are the same
COSTLIER = 1.25  # a smaller ratio of costs is noise
COSTS = {"train_passes": "passes", "train_seconds": "seconds", "peak_memory_mb": "peak memory"}
DECIDING = ("passes", "seconds")  # peak memory is that of the whole process, compiler included


def inception_score_gains(table: pd.DataFrame) -> tuple[dict[str, Estimate], str]:
    """By setting, the gain in the teacher's Inception score from no guidance to the largest weight, and how it is read.

    Intervals are over splits of the images.
    """
    teacher = table[(table["method"] == "teacher") & (table["variant"] == "default")].fillna({"guidance": 0.0})
    gains, paths = {}, {}
    for (backend, sampler, steps), rows in teacher.groupby(["backend", "sampler", "steps"], sort=False):
        rows = rows[rows["seed"] == rows["seed"].min()].sort_values("guidance")
        first, last = rows.iloc[0], rows.iloc[-1]
        if first["guidance"] == 0 < last["guidance"] and pd.notna(first["is"]):  # an extractor may have no logits
            name = f"{backend}, {sampler}, {steps} steps"
            # The recorded deviation is that of the whole population of splits.
            error = np.hypot(first["is_std"], last["is_std"]) / np.sqrt(SPLITS - 1)
            half = half_width(error**2, 2 * (SPLITS - 1))
            gains[name] = Estimate(last["is"] - first["is"], half, f"{SPLITS} splits")
            paths[name] = ", ".join(f"{row['is']:.2f} at w = {row['guidance']:g}" for _, row in rows.iterrows())
    told = (
        "Gain in the teacher's Inception score from no guidance to the largest weight, of one network. Holds if the "
        f"intervals over {SPLITS} splits of the images lie above 0. Scores: {listed(paths)}."
    )
    return gains, told


class Shape(NamedTuple):
    """The course of a smoothed loss; the peak's place is a share of the training."""

    place: float
    peak_over_start: float
    end_over_peak: float
    r_squared: float

    @property
    def rises(self) -> bool:
        """Briefly: the peak is early, and above the start."""
        return self.place <= BRIEF and self.peak_over_start >= RISE

    @property
    def decays(self) -> bool:
        """Exponentially: far, and along a straight line on a logarithmic axis."""
        return self.end_over_peak <= FALL and self.r_squared >= STRAIGHT


def loss_shape(x: np.ndarray, y: np.ndarray) -> Shape:
    """The shape of a loss y (n,) over updates x (n,), smoothed; means that are not positive are no part of the fit."""
    centres, mean = running_mean(x, y, max(1, len(y) // SMOOTH))
    top = int(mean.argmax())
    place, start, peak, end = float(centres[top] / x[-1]), mean[0], mean[top], mean[-max(1, len(mean) // 10) :].mean()
    fitted = (np.arange(len(mean)) >= top) & (mean > 0)
    r_squared = 0.0
    if fitted.sum() > 2:
        line = stats.linregress(centres[fitted], np.log(mean[fitted]))
        r_squared = float(line.rvalue**2) if line.slope < 0 else 0.0
    rise = float(peak / start) if start > 0 else np.inf
    return Shape(place, rise, float(end / peak) if peak > 0 else np.inf, r_squared)


def instant_loss_decays(evidence: Evidence) -> Finding:
    """C7: the equation-9 loss of every instant student has an early peak and decays exponentially from there."""
    long = {name: curve for name, curve in evidence.instant.items() if len(curve[0]) >= MIN_POINTS}
    shapes = {name: loss_shape(*curve) for name, curve in long.items()}
    told = (
        f"Smoothed loss of equation 9 of {len(shapes)} runs. A run rises briefly if its peak lies within the first "
        f"{BRIEF:.0%} of training, at least {RISE:g} times the start; it decays exponentially if it ends below "
        f"{FALL:g} of the peak and a straight line explains at least {STRAIGHT:.0%} of its logarithm after the peak. "
        "Holds if all runs do both, does not hold if less than half of them do. Means that are not positive are no "
        "part of the line."
    )
    if not shapes:
        verdict = Verdict.UNDECIDED if evidence.instant else Verdict.UNTESTED
        return Finding(verdict, f"{told} A log needs {MIN_POINTS} lines.")
    rise, decay = (sum(part) for part in zip(*((shape.rises, shape.decays) for shape in shapes.values()), strict=True))
    both = sum(shape.rises and shape.decays for shape in shapes.values())
    share = both / len(shapes)
    verdict = Verdict.HOLDS if share == 1 else Verdict.UNDECIDED if share >= 0.5 else Verdict.FAILS
    places, starts, ends, fits = ((min(part), max(part)) for part in zip(*shapes.values(), strict=True))
    statistic = (
        f"{rise} of {len(shapes)} rise, {decay} decay; peak at {places[0]:.0%} to {places[1]:.0%} of training, "
        f"{starts[0]:.3g} to {starts[1]:.3g} times the start; end at {ends[0]:.3g} to {ends[1]:.3g} of the peak; "
        f"R² {fits[0]:.2f} to {fits[1]:.2f}"
    )
    return Finding(verdict, told, statistic)


def samplers_weigh_differently(evidence: Evidence) -> Finding:
    """C8: total variation between the implied weights of DDPM and DDIM."""
    told = (
        "Total variation between the shares that DDPM and DDIM sampling give to the network's predictions, held as "
        "free inputs: v-predictions in the sample, from the sampler's own coefficients, without randomness. Holds if "
        f"it is at least {DIFFERENT} at the largest number of student steps; fewer steps leave less to weigh."
    )
    if not evidence.implied:
        return Finding(Verdict.UNTESTED, told)
    verdict = Verdict.HOLDS if evidence.implied[max(evidence.implied)] >= DIFFERENT else Verdict.FAILS
    return Finding(verdict, told, ", ".join(f"{of:.3f} for k = {k}" for k, of in evidence.implied.items()))


def coincides_with_diff_instruct(evidence: Evidence) -> Finding:
    """C10: the student gradients of Algorithm 2 and of Diff-Instruct at k = 1 from pure noise."""
    told = (
        "Relative distance between the two student gradients of one random network with k = 1, alpha_1 = 0, discrete "
        f"t, the same networks, s, weight and draws. Holds if it is at most {SAME:g}, the tolerance of float32."
    )
    if not evidence.gradients:
        return Finding(Verdict.UNTESTED, told)
    verdict = Verdict.HOLDS if max(evidence.gradients.values()) <= SAME else Verdict.FAILS
    return Finding(verdict, told, ", ".join(f"{name} {of:.1e}" for name, of in evidence.gradients.items()))


def cost_trades_against_quality(evidence: Evidence) -> Finding:
    """C12: of the two algorithms of moment matching, the one with the lower FID below 8 steps costs more."""
    table = evidence.table[evidence.table["variant"] == "default"]
    by_method = [set(table.loc[table["method"] == method, "steps"]) for method in (ALTERNATING, INSTANT)]
    steps = sorted(k for k in by_method[0] & by_method[1] if k < MANY)
    found = [difference(values(table, ALTERNATING, k), values(table, INSTANT, k)) for k in steps]
    backends = [name for name in dict.fromkeys(table["backend"]) if found and all(name in of for of in found)]
    quality = {name: Estimate(float(np.mean([of[name].mean for of in found])), None, "") for name in backends}
    better = below(quality, by_seeds=False)
    cost = {name: _cost_ratios(table, name, steps) for name in backends}
    verdict = better
    if better in (Verdict.HOLDS, Verdict.FAILS):  # alternating, or instant is the better one: does it cost more?
        winner = 1 if better is Verdict.HOLDS else -1
        dearer = [any(of[name] ** winner >= COSTLIER for name in DECIDING if name in of) for of in cost.values()]
        verdict = Verdict.HOLDS if all(dearer) else Verdict.UNDECIDED if any(dearer) else Verdict.FAILS
    told = (
        "Read as: neither algorithm is both better and cheaper. FID and the training costs of alternating over those "
        f"of instant, geometric and arithmetic means over k = {', '.join(map(str, steps)) or DASH}, where the paper "
        "sees them differ. Holds if the one with the lower FID on at least two backends costs at least "
        f"{COSTLIER:g} times as much in network passes of an image or in seconds; does not hold if it does on none. "
        f"Seconds a pass, alternating over instant: {listed(_per_pass(table, backends, steps))}. Stability: standard "
        f"deviation of log FID over seeds at {MANY} steps: {listed(_spreads(table))}."
    )
    shown = {"FID": ratios(quality)}
    shown |= {name: ", ".join(f"{key} {ratio:.2f}" for key, ratio in of.items()) for name, of in cost.items()}
    return Finding(verdict, told, listed(shown))


def _costs(table: pd.DataFrame, method: str, backend: str, steps: list[int], column: str) -> float:
    """The mean of a cost over step counts; NaN where a student did not record it."""
    of = [values(table, method, k, column=column, log=False).get(backend) for k in steps]
    return float(np.mean([np.nan if one is None else one.mean() for one in of]))


def _cost_ratios(table: pd.DataFrame, backend: str, steps: list[int]) -> dict[str, float]:
    """Each recorded cost of alternating over that of instant."""
    found = {}
    for column, name in COSTS.items():
        ours, theirs = (_costs(table, method, backend, steps, column) for method in (ALTERNATING, INSTANT))
        if np.isfinite(ours) and theirs > 0:
            found[name] = ours / theirs
    return found


def _per_pass(table: pd.DataFrame, backends: list[str], steps: list[int]) -> dict[str, str]:
    """By backend, the ratio of the seconds that one network pass of an image takes in training."""
    rates = table.assign(train_seconds=table["train_seconds"] / table["train_passes"])
    found = {name: _cost_ratios(rates, name, steps).get("seconds") for name in backends}
    return {name: f"{ratio:.2f}" for name, ratio in found.items() if ratio is not None}


def _spreads(table: pd.DataFrame) -> dict[str, str]:
    """By algorithm, the spread of log FID over seeds wherever there are enough of them."""
    return {
        method.partition("/")[2]: ", ".join(
            f"{backend} {of.std(ddof=1):.2f}"
            for backend, of in values(table, method, MANY).items()
            if len(of) >= MIN_SEEDS
        )
        for method in (ALTERNATING, INSTANT)
    }
