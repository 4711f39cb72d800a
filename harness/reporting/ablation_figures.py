"""Figures of the ablations: z_s drawn with and without z_t, guidance in the teacher, and FID by variant."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from harness.datasets import ImageSet
from harness.reporting.claims_evidence import ALTERNATING
from harness.reporting.grids import read_samples, tile
from harness.reporting.records import (
    ALIKE,
    SAMPLERS,
    Record,
    frame,
    matched_guidance,
    method_name,
    over_seeds,
    sample_count,
    text_to_image,
)
from harness.reporting.style import REFERENCE, Figure, colour, line, log_axis, plain, save

TRANSITIONS = {
    "default": r"Conditional: $z_s \sim q(z_s \mid z_t, \tilde{x})$",
    "unconditional": r"Unconditional: $z_s \sim q(z_s \mid \tilde{x})$",
}
SIDE = 6  # images of one class on a side of a panel


def ablation_figures(records: Sequence[Record], folder: Path, real_images: Path | None) -> dict[str, Figure]:
    """Those of the three figures whose records are there: conditional-vs-unconditional, guidance, ablations.

    `real_images` is the file of a data set (`ImageSet`). A text-to-image profile has the last alone. Raises UserError
    for samples that cannot be read.
    """
    means = over_seeds(frame(records))
    if text_to_image(means).any():  # scenes are no classes, and guidance is no ablation
        return variants_figure(means, folder)
    return (
        transition_grids(records, folder, real_images) | guidance_figure(means, folder) | variants_figure(means, folder)
    )


def transition_grids(records: Sequence[Record], folder: Path, real_images: Path | None) -> dict[str, Figure]:
    """One class, the last: real images, then students trained with z_s ~ q(z_s | z_t, x~) and with z_s ~ q(z_s | x~).

    Both students have the same k (the largest that both have), backend and seed.
    """
    kept: dict[tuple[int, str, int | None], dict[str, Record]] = {}
    for record in records:
        row = record.row
        if row.method == ALTERNATING and row.variant in TRANSITIONS and record.samples.exists():
            kept.setdefault((row.steps, row.backend, row.seed), {})[row.variant] = record
    pairs = {key: pair for key, pair in kept.items() if len(pair) == len(TRANSITIONS)}
    if not pairs:
        return {}
    k, backend, _ = key = max(pairs, key=lambda key: key[0])  # of several backends and seeds, the first
    panels = []
    if real_images is not None:
        data = ImageSet.load(real_images)
        floor = next((record for record in records if record.row.method == "real-data"), None)
        panels.append(("Real images\n" + _distance(floor), data.pixels, data.labels))
    for variant, name in TRANSITIONS.items():
        record = pairs[key][variant]
        title = f"{name}\nrecall {record.row.recall:.3f}, {_distance(record)}"
        panels.append((title, *read_samples(record.samples)))
    label = int(panels[-1][2].max())
    canvas, axes = plt.subplots(1, len(panels), figsize=(3.1 * len(panels), 3.4), squeeze=False)
    for ax, (title, images, labels) in zip(axes[0], panels, strict=True):
        ax.imshow(tile(_square(images[labels == label])), interpolation="nearest")
        ax.set_title(title, fontsize=9, fontweight="normal")
        ax.axis("off")
    canvas.tight_layout(w_pad=1.5)
    caption = (
        f"Class {label}: the first samples of two students of Algorithm 2, k = {k}, {backend}, not selected; equal "
        "places show equal initial noise. z_s is drawn in training from z_t and the student's x~, or from x~ alone. "
        "Recall and class distance, the mean distance between the extractor's features of two images of one class, "
        "are of all classes: both fall where samples are less diverse than real images."
    )
    if real_images is None:
        caption += " No real images were given, so none are shown."
    name = "conditional-vs-unconditional"
    return {name: Figure(save(canvas, folder, name), "Conditional against unconditional z_s", caption)}


def _square(images: np.ndarray) -> np.ndarray:
    """The first images (n, c, h, w) as a grid (SIDE, SIDE, c, h, w); too few leave white images."""
    grid = np.full((SIDE * SIDE, *images.shape[1:]), 255, np.uint8)
    chosen = images[: len(grid)]
    grid[: len(chosen)] = chosen
    return grid.reshape(SIDE, SIDE, *images.shape[1:])


def _distance(record: Record | None) -> str:
    distance = None if record is None else record.extra.class_distance
    return "class distance not measured" if distance is None else f"class distance {distance:.2f}"


def guidance_figure(means: pd.DataFrame, folder: Path) -> dict[str, Figure]:
    """FID against Inception Score of the teacher over the guidance weight w, a panel a sampler and step count."""
    teachers = means[(means["method"] == "teacher") & means["guidance"].notna()]
    groups = teachers.groupby([*ALIKE, "convention", "sampler", "steps"], sort=False)
    blocks = [block for _, block in groups if (block["guidance"] > 0).any()]
    if not blocks:
        return {}
    floors = means[means["method"] == "real-data"]
    canvas, axes = plt.subplots(len(blocks), 1, figsize=(5.2, 3.7 * len(blocks)), squeeze=False)
    for ax, block in zip(axes[:, 0], blocks, strict=True):
        _guidance_panel(ax, block, floors.merge(block[ALIKE].drop_duplicates()))
    canvas.tight_layout()
    caption = (
        "FID (logarithmic) against Inception Score of the teacher, for each weight w of classifier-free guidance "
        "g_c + w (g_c - g_u); w = 0 is none, and a guided step costs two network evaluations. Further right, the "
        "extractor is surer of the classes; further down, the images are closer to the training set. "
        "The star is real training images, as many. Line and marker: backend."
    )
    return {"guidance": Figure(save(canvas, folder, "guidance"), "Guidance in the teacher", caption)}


def _guidance_panel(ax: Axes, block: pd.DataFrame, real: pd.DataFrame) -> None:
    for place, (backend, points) in enumerate(block.groupby("backend", sort=False)):
        points = points.sort_values("guidance")
        x, y, w = (points[name].to_numpy(float) for name in ("is", "fid", "guidance"))
        ax.plot(x, y, color=colour("teacher"), label=str(backend), markersize=4.5, **line(str(backend)))
        side: dict[str, Any] = {"xytext": (6, -3), "va": "top"} if place == 0 else {"xytext": (-6, 3), "ha": "right"}
        for at in zip(x, y, w, strict=True):
            ax.annotate(f"w = {at[2]:g}", at[:2], textcoords="offset points", fontsize=8, **side)
    ax.plot(real["is"], real["fid"], "*", color=REFERENCE, markersize=9, label="real data")
    ax.margins(0.12)
    log_axis(ax)
    n = sample_count(int(block["n_samples"].iloc[0]))
    ax.set_xlabel(f"Inception Score, IS-{n} (higher is better)")
    ax.set_ylabel(f"FID-{n} (lower is better)")
    sampler, k = SAMPLERS[block["sampler"].iloc[0]], int(block["steps"].iloc[0])
    ax.set_title(f"Teacher, {sampler}, {k} step{'s' * (k > 1)}")
    ax.legend(loc="best", handlelength=3)


def variants_figure(means: pd.DataFrame, folder: Path) -> dict[str, Figure]:
    """FID of every variant of a method beside its default, a row of panels a method, a column a step count."""
    students = means[~means["method"].isin(["teacher", "real-data"])]
    students = students.assign(matched=matched_guidance(students))
    groups = students.groupby([*ALIKE, "convention", "method", "matched"], sort=False)
    blocks = [block for _, block in groups if (block["variant"] != "default").any()]
    if not blocks:
        return {}
    counts = [sorted(set(block.loc[block["variant"] != "default", "steps"]), reverse=True) for block in blocks]
    heights = [0.27 * block["variant"].nunique() + 0.75 for block in blocks]
    columns = max(map(len, counts))
    canvas, axes = plt.subplots(
        len(blocks), columns, figsize=(1.4 + 3 * columns, sum(heights)), height_ratios=heights, squeeze=False
    )
    for panels, block, steps in zip(axes, blocks, counts, strict=True):
        order = block.sort_values(["steps", "fid"], ascending=[False, True])["variant"]
        variants = list(dict.fromkeys(["default", *order]))
        for ax, k in zip(panels, steps, strict=False):
            _variants_panel(ax, block[block["steps"] == k], variants, named=ax is panels[0])
            guided = f", w = {block['matched'].iloc[0]:g}" if text_to_image(block).any() else ""
            ax.set_title(f"{method_name(str(block['method'].iloc[0]))}, k = {k}{guided}", fontsize=9)
        for ax in panels[len(steps) :]:
            ax.axis("off")
    backends = list(dict.fromkeys(backend for block in blocks for backend in block["backend"]))
    canvas.tight_layout()
    handles = [Line2D([], [], color=REFERENCE, label=name, **line(name) | {"linestyle": ""}) for name in backends]
    canvas.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(handles), borderaxespad=0)
    caption = (
        "FID (logarithmic, lower is better) of each ablation. The default is in bold, with a dotted line at its FID on "
        "each backend; a variant right of the line is worse. Marker: backend."
    )
    if (means["seeds"] > 1).any():
        caption += " Bars: one standard deviation over seeds."
    return {"ablations": Figure(save(canvas, folder, "ablations"), "Ablations", caption)}


def _variants_panel(ax: Axes, rows: pd.DataFrame, variants: Sequence[str], *, named: bool) -> None:
    tint = colour(str(rows["method"].iloc[0]))
    backends = list(dict.fromkeys(rows["backend"]))
    for row in rows.to_dict("records"):
        style = line(row["backend"]) | {"linestyle": ""}
        if row["variant"] == "default":
            ax.axvline(row["fid"], color=REFERENCE, linestyle=":", linewidth=1.1)
        y = variants.index(row["variant"]) + 0.22 * (backends.index(row["backend"]) - (len(backends) - 1) / 2)
        deviation = 0 if np.isnan(row["fid_sd"]) else row["fid_sd"]
        spread = [[min(deviation, 0.99 * row["fid"])], [deviation]]
        ax.errorbar(row["fid"], y, xerr=spread, color=tint, elinewidth=0.9, capsize=2, markersize=5, **style)
    ax.set_yticks(range(len(variants)), variants if named else [""] * len(variants))
    ax.get_yticklabels()[0].set_fontweight("bold")
    ax.set_ylim(len(variants) - 0.5, -0.5)
    ax.set_xscale("log")
    low, high = rows["fid"].min() / 1.5, rows["fid"].max() * 1.5
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    ax.xaxis.set_major_formatter(FuncFormatter(plain))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(f"FID-{sample_count(int(rows['n_samples'].iloc[0]))}")


def _ticks(low: float, high: float) -> list[float]:
    """A few round numbers of a logarithmic axis, where matplotlib's own locators give too many or too few."""
    digits = (1, 1.5, 2, 3, 5, 7) if high < 5 * low else (1, 2, 5) if high < 100 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    return [tick for n in decades for digit in digits if low <= (tick := digit * 10.0**n) <= high]
