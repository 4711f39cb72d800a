"""Figures against the step count, the training curves, and the one call that draws every figure."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from harness.files import write_atomic
from harness.reporting.grids import class_grids, comparison_grids
from harness.reporting.records import frame, load_records, over_seeds
from harness.reporting.style import REFERENCE, Figure, colour, line, log_axis, margin_labels, plain, save, use_style
from harness.reporting.training_curves import training_curves

CAPTIONS = "captions.json"


def write_figures(
    paths: Sequence[Path | str], folder: Path | str, real_images: Path | str | None = None
) -> dict[str, Figure]:
    """Draw every figure of the records at `paths` into an existing folder, as PNG and SVG, beside captions.json.

    Samples and training logs are looked for beside each record; a figure whose inputs are absent is left out or says
    what it lacks. `real_images` is the file of a data set (`ImageSet`), whose images stand
    beside the samples. Returns {name: figure}; raises UserError for inputs that cannot be read.
    """
    records, folder = load_records(paths), Path(folder)
    use_style()
    means = over_seeds(frame(records))
    figures = {"fid": fid_figure(means, folder), "memorisation": memorisation_figure(means, folder)}
    real = Path(real_images) if real_images else None
    figures |= comparison_grids(records, folder, real) | class_grids(records, folder, real)
    figures |= training_curves(records, folder)
    captions = {
        name: {"file": figure.path.name, "title": figure.title, "caption": figure.caption}
        for name, figure in figures.items()
    }
    write_atomic(folder / CAPTIONS, json.dumps(captions, indent=1, ensure_ascii=False) + "\n")
    return figures


def fid_figure(means: pd.DataFrame, folder: Path) -> Figure:
    """FID against sampling steps, every method and backend, with the real-data floor."""
    canvas = against_steps(means, "fid", "fid", "Real data (floor)", "FID-{n} (lower is better)")
    caption = (
        "FID against the number of sampling steps, both axes logarithmic. A student below its teacher's curve is "
        "better than the teacher at that many steps; the dotted line is the floor: real training images, as many. "
        + _reading(means)
    )
    return Figure(save(canvas, folder, "fid"), "FID against sampling steps", caption)


def memorisation_figure(means: pd.DataFrame, folder: Path) -> Figure:
    """Distance to the nearest training image, every row, against that of held-out real images."""
    ylabel = "distance to the nearest training image\n(mean Euclidean, pixels in [-1, 1])"
    held = means["nn_distance_heldout"].notna().any()
    canvas = against_steps(means, "nn_distance", "nn_distance_heldout", "Held-out real images", ylabel, log=False)
    caption = (
        "Mean distance from a sample to its nearest training image, for every row. "
        + (
            "The dotted line is the distance of held-out real images: samples near it are as new as unseen data, "
            "samples far below it copy the training set, samples far above it are unlike any of it. "
            if held
            else "No real-data record gives the level of held-out images, so no line marks it. "
        )
        + _reading(means)
    )
    return Figure(save(canvas, folder, "memorisation"), "Memorisation", caption)


def _reading(means: pd.DataFrame) -> str:
    text = "Colour: method; line and marker: backend."
    if (means["seeds"] > 1).any():
        text += " Bars: one standard deviation over seeds."
    if means["identity"].nunique() > 1:
        text += " Each panel is one identity: values of different panels are not comparable."
    return text


def against_steps(
    means: pd.DataFrame, metric: str, level: str, level_name: str, ylabel: str, *, log: bool = True
) -> Canvas:
    """Draw `metric` over steps, one panel an identity, and the real-data record's `level` as a dotted line."""
    blocks = [block for _, block in means.groupby(["profile", "identity", "n_samples"], sort=False)]
    canvas, axes = plt.subplots(len(blocks), 1, figsize=(5.2, 3.9 * len(blocks)), squeeze=False)
    canvas.subplots_adjust(hspace=0.35)
    for ax, block in zip(axes[:, 0], blocks, strict=True):
        n = int(block["n_samples"].iloc[0])
        ax.set_ylabel(ylabel.format(n=f"{n // 1000}k" if n % 1000 == 0 else n))
        if len(blocks) > 1:
            ax.set_title(f"{block['profile'].iloc[0]}, identity {str(block['identity'].iloc[0])[:8]}")
        _panel(ax, block, metric, level, level_name, log=log)
    return canvas


def _panel(ax: Axes, block: pd.DataFrame, metric: str, level: str, level_name: str, *, log: bool) -> None:
    entries: list[tuple[float, float, str, str]] = []
    drawn = block[(block["steps"] > 0) & block[metric].notna()]
    steps = sorted({int(value) for value in drawn["steps"]})
    ax.set_xscale("log", base=2)
    for label, rows in drawn.groupby("label", sort=False):
        tint = colour(str(rows["method"].iloc[0]), str(rows["sampler"].iloc[0]))
        ends = []
        for backend, points in rows.groupby("backend", sort=False):
            points = points.sort_values("steps")
            x, y = points["steps"].to_numpy(float), points[metric].to_numpy(float)
            sd = points[f"{metric}_sd"].fillna(0).to_numpy(float)
            ax.plot(x, y, color=tint, label=f"{label} ({backend})", markersize=4.5, **line(str(backend)))
            if sd.any():
                ax.errorbar(x, y, np.minimum(sd, 0.99 * y), fmt="none", ecolor=tint, elinewidth=0.9, capsize=2)
            ends.append((x[-1], y[-1]))
        x_end = max(x for x, _ in ends)
        y_end = float(np.exp(np.mean([np.log(y) for x, y in ends if x == x_end])))
        entries.append((x_end, y_end, str(label), tint))
    reference = block.loc[block["method"] == "real-data", level].dropna()
    if len(reference):
        ax.axhline(float(reference.mean()), color=REFERENCE, linestyle=":", linewidth=1.4, label=level_name)
    if steps:
        ax.set_xlim(steps[0] / 1.25, steps[-1] * 1.25)
        ax.xaxis.set_major_locator(FixedLocator(steps))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(plain))
    if log:
        log_axis(ax)
    else:
        ax.set_ylim(bottom=0)
    ax.set_xlabel("sampling steps (logarithmic)")
    if len(reference):
        entries.append((ax.get_xlim()[1], float(reference.mean()), level_name, REFERENCE))
    margin_labels(ax, entries)
    backends = list(dict.fromkeys(drawn["backend"]))
    handles = [Line2D([], [], color=REFERENCE, markersize=4.5, label=name, **line(name)) for name in backends]
    ax.legend(handles=handles, loc="best", handlelength=3)
