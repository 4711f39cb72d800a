"""What each network prediction weighs in a sample, for DDPM and DDIM sampling (Salimans et al. 2024, figure 8).

Every transition is linear in z_t and the prediction, so that a sample is a weighted sum of the k predictions, of the
initial noise and of the noise added in between, if the predictions are held as free inputs: as if the network did not
react to z_t. Only the mean of the ancestral transition counts, whatever its variance.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from harness.diffusion import Array, Clock, x_from_v
from harness.files import write_atomic
from harness.reporting.records import SAMPLERS
from harness.reporting.style import Figure, colour, log_axis, save
from harness.samplers import equal_times, sampling_step

Prediction = Literal["v", "x"]
LINES: dict[str, dict[str, Any]] = {
    "ancestral": {"marker": "o"},
    "ddim": {"marker": "s", "linestyle": (0, (4, 2)), "fillstyle": "none"},
}
NAMES = {"ancestral": "DDPM (ancestral)", "ddim": SAMPLERS["ddim"]}
MARKED = 16  # with more steps than these, the points would hide the line


class Weights(NamedTuple):
    """Weights of the k predictions, in the order in which they are made: t = 1 first.

    `sample` (k,): in the sample, which is the last denoised prediction (Algorithm 1). With x-predictions as the inputs
    it is that prediction alone, whatever the sampler. `latent` (k,): in z_{1/k}, which the last network call sees; the
    last prediction is not in it.
    """

    sample: np.ndarray
    latent: np.ndarray


def implied_weights(clock: Clock, family: str, k: int, prediction: Prediction) -> Weights:
    """The weights of k steps of `family` (a key of `samplers.FAMILIES`), the predictions being of v or of x.

    The sampler itself computes them, in float64: the i-th prediction is the i-th unit vector and all noise is zero, so
    that component i of the sample is the weight of prediction i.
    """
    z = x = np.zeros((1, k))
    latent, no_noise, label = z, np.zeros((1, k)), np.zeros(1, int)
    times = np.array([*equal_times(k), 0.0])
    for i, unit in enumerate(np.eye(k)):
        latent, t, s = z, times[i : i + 1], times[i + 1 : i + 2]
        denoiser = partial(_denoise, clock, prediction, unit[None])
        z, x = sampling_step(clock, family, 0.0, denoiser, z, t, s, label, no_noise)
    return Weights(x[0], latent[0])


def _denoise(clock: Clock, prediction: Prediction, value: Array, z: Array, t: Array, condition: Array) -> Array:
    return value if prediction == "x" else x_from_v(z, value, clock(t))


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    """Half the L1 distance between absolute weights, each normalised to sum to one: 0 equal, 1 disjoint."""
    shares = [np.abs(weights) / np.abs(weights).sum() for weights in (first, second)]
    return 0.5 * float(np.abs(shares[0] - shares[1]).sum())


def sampler_distance(clock: Clock, k: int, prediction: Prediction) -> float:
    """Total variation between DDPM's and DDIM's weights: of v-predictions in the sample, of x-predictions in z_{1/k}.

    The former is the statistic of the paper's figure 8; between the samples themselves the latter would be 0. k >= 2.
    """
    first, second = (implied_weights(clock, family, k, prediction) for family in LINES)
    if prediction == "v":
        return total_variation(first.sample, second.sample)
    return total_variation(first.latent, second.latent)


def weights_table(clock: Clock, steps: Sequence[int]) -> pd.DataFrame:
    """One line a prediction: prediction, sampler, steps, t, logsnr, weight_in_sample and weight_in_last_latent."""
    lines = []
    for k in steps:
        times = np.array(equal_times(k))
        for prediction in ("v", "x"):
            for family in LINES:
                weights = implied_weights(clock, family, k, prediction)
                columns = {"t": times, "logsnr": clock(times).logsnr, "weight_in_sample": weights.sample}
                columns["weight_in_last_latent"] = weights.latent
                lines.append(pd.DataFrame({"prediction": prediction, "sampler": family, "steps": k} | columns))
    return pd.concat(lines, ignore_index=True)


def implied_weighting_figure(clock: Clock, steps: Sequence[int], folder: Path) -> dict[str, Figure]:
    """Draw the weights of v- and of x-predictions over t, a row for each k of `steps` (each at least 2).

    The numbers are written beside the figure, as implied-weighting.csv.
    """
    table = weights_table(clock, steps)
    write_atomic(folder / "implied-weighting.csv", table.to_csv(index=False, lineterminator="\n"))
    canvas, axes = plt.subplots(len(steps), 2, figsize=(8.4, 2.9 * len(steps)), squeeze=False)
    for k, (v_panel, x_panel) in zip(steps, axes, strict=True):
        rows = table[table["steps"] == k]
        _panel(v_panel, rows[rows["prediction"] == "v"], "weight_in_sample")
        v_panel.set_title(f"v-predictions in the sample, k = {k}")
        _panel(x_panel, rows[(rows["prediction"] == "x") & (rows["t"] > rows["t"].min())], "weight_in_last_latent")
        x_panel.set_title(f"x-predictions in the last latent, k = {k}")
        v_panel.set_ylim(bottom=0)
        log_axis(x_panel)
    for ax in axes[-1]:
        ax.set_xlabel("time t of the prediction (sampling runs from left to right)")
    axes[0, 0].legend(loc="best", handlelength=3)
    canvas.tight_layout()
    distances = "; ".join(
        f"{sampler_distance(clock, k, 'v'):.2f} (left) and {sampler_distance(clock, k, 'x'):.2f} (right) for k = {k}"
        for k in steps
    )
    caption = (
        "The share of each network prediction in the result, were the predictions free inputs: its absolute weight "
        "over the sum of all. Left: v-predictions in the sample. Right: x-predictions in the last latent, z at t = "
        "1/k, from which the last prediction is made; the sample is that last x-prediction alone, with either sampler. "
        f"Total variation between the two samplers' shares: {distances}. Values: implied-weighting.csv."
    )
    title = "Implied weighting of the predictions"
    return {"implied-weighting": Figure(save(canvas, folder, "implied-weighting"), title, caption)}


def _panel(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    for family, points in rows.groupby("sampler", sort=False):
        shares = points[column].abs() / points[column].abs().sum()
        style = LINES[str(family)] | ({"marker": ""} if len(points) > MARKED else {})
        tint = colour("teacher", str(family))
        ax.plot(points["t"], shares, color=tint, label=NAMES[str(family)], markersize=4.5, **style)
    ax.set_xlim(1.03, -0.03)
    ax.set_ylabel("share of the weight")
