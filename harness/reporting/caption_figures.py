"""Figures of text-to-image profiles: what guidance buys, and which attributes come out right."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from harness.reporting.records import ALIKE, Record, frame, is_ablation, sample_count
from harness.reporting.style import REFERENCE, Figure, colour, log_axis, pale, save

NORMAL = 1.96  # half width of a 95% interval in standard errors, of thousands of images
SHAPES = "os^DvPX<>p"  # of points, by guidance weight
BEYOND = 0.5  # of the sides of the box around the curves over guidance: what lies further off is named, not drawn
FEWER, PALEST = 0.3, 0.75  # share of white in a curve's colour: from one step count to the next smaller one, at most
KINDS = {"one_object": "one object", "two_objects": "two objects"}
JOINT = "joint"
CELL, LABELS = (0.42, 0.23), 2.7  # inches of a cell of the attributes' figure, and of its rows' names


def guidance_figure(records: Sequence[Record], folder: Path) -> dict[str, Figure]:
    """FID against CLIP score over the guidance weight, as `guidance`: a panel for each backend.

    A curve for each method and step count that has several weights, and a point for each other method's student with
    the most steps. Results far from all curves do not stretch the axes: they are named below, with their numbers.
    None where there are no CLIP scores, or no guidance.
    """
    table = _main_rows(records)
    table = table[table["clip"].notna() & table["guidance"].notna()]
    if not (table["guidance"] > 0).any():
        return {}
    blocks = [block for _, block in table.groupby([*ALIKE, "convention"], sort=False)]
    backends = list(dict.fromkeys(table["backend"]))
    size = (4.4 * len(backends), 4.2 * len(blocks))
    canvas, axes = plt.subplots(len(blocks), len(backends), figsize=size, squeeze=False, sharey="row", sharex="row")
    floors = frame(records)
    floors = floors[floors["method"] == "real-data"].assign(label="real data", steps=0, guidance=np.nan)
    shapes = dict(zip(sorted(table["guidance"].unique()), itertools.cycle(SHAPES), strict=False))
    ranks = _ranks(table)
    handles: dict[tuple[int, int], Any] = {}
    for panels, block in zip(axes, blocks, strict=True):
        n = sample_count(int(block["n_samples"].iloc[0]))
        real = floors.merge(block[ALIKE].drop_duplicates())
        shown = _over_seeds(_curves_and_points(block))
        near = _near_the_curves(shown)
        for ax, backend in zip(panels, backends, strict=True):
            own = shown["backend"] == backend
            handles |= _guidance_panel(ax, shown[own & near], ranks, shapes)
            ax.set_title(backend + (f", identity {block['identity'].iloc[0][:8]}" if len(blocks) > 1 else ""))
            below = [
                f"{_name(row)}: CLIP score {row['clip']:.1f}, FID {row['fid']:.2f}"
                for row in pd.concat([real, shown[own & ~near]]).to_dict("records")
            ]
            ax.set_xlabel("\n".join([f"CLIP score-{n} (higher is better)", *below]))
        panels[0].set_ylabel(f"FID-{n} (lower is better)")
        panels[0].margins(0.08, 0.08)
        log_axis(panels[0])
    for weight, shape in shapes.items():
        handles[len(ranks), len(handles)] = plt.Line2D(
            [], [], color=REFERENCE, linestyle="", marker=shape, markersize=5, label=f"w = {weight:g}"
        )
    canvas.tight_layout()
    canvas.legend(handles=[handles[key] for key in sorted(handles)], loc="center left", bbox_to_anchor=(1, 0.5))
    caption = (
        "FID (logarithmic) against CLIP score over the weight w of classifier-free guidance g_c + w (g_c - g_u), by "
        "the shape of a point: of a teacher's own sampling, whose guided steps cost two network evaluations, or of the "
        "teacher that a student was distilled from. Curves are paler with fewer steps. Where a method has one weight "
        "at each step count, its students with the most steps are points. Bars: 95% intervals of the CLIP score over "
        "images. Further right, images show more of their captions; further down, they are closer to real images. Real "
        "images with their own captions, and results far from every curve, are written below the panels."
    )
    return {"guidance": Figure(save(canvas, folder, "guidance"), "FID against CLIP score over guidance", caption)}


def _ranks(rows: pd.DataFrame) -> dict[str, dict[int, int]]:
    """By label, each of its step counts' rank, the most steps first."""
    steps = {
        str(label): sorted(own["steps"].unique(), reverse=True) for label, own in rows.groupby("label", sort=False)
    }
    return {label: {int(k): rank for rank, k in enumerate(counts)} for label, counts in steps.items()}


def _curves_and_points(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of step counts with several weights, and where a method's students have none, those of most steps."""
    curve = rows.groupby(["label", "backend", "steps"])["guidance"].transform("nunique") > 1
    by_method = rows.assign(curve=curve).groupby(["label", "backend"])
    lone = ~by_method["curve"].transform("any") & (rows["steps"] == by_method["steps"].transform("max"))
    return rows[curve | (lone & (rows["method"] != "teacher"))].assign(curve=curve)


def _near_the_curves(rows: pd.DataFrame) -> pd.Series:
    """Which rows lie within the box of the curves over guidance, or at most `BEYOND` of its sides outside."""
    near = rows["fid"] > 0
    for values in (rows["clip"], rows["fid"].where(near).map(math.log, na_action="ignore")):
        low, high = values[rows["curve"]].min(), values[rows["curve"]].max()
        if high > low:
            near &= values.between(low - BEYOND * (high - low), high + BEYOND * (high - low))
    return near


def _main_rows(records: Sequence[Record]) -> pd.DataFrame:
    """Trained networks, no ablations; the teacher's sampling is the ancestral one."""
    table = frame(records)
    other = (table["method"] == "teacher") & (table["sampler"] != "ancestral")
    return table[(table["method"] != "real-data") & ~is_ablation(table) & ~other]


def _guidance_panel(
    ax: Axes, rows: pd.DataFrame, ranks: dict[str, dict[int, int]], shapes: dict[float, str]
) -> dict[tuple[int, int], Any]:
    """Draw the curves of one backend; returns what the legend shows of them, by their place in it."""
    found: dict[tuple[int, int], Any] = {}
    for label, counts in ranks.items():
        for k, rank in counts.items():
            points = rows[(rows["label"] == label) & (rows["steps"] == k)]
            if points.empty:
                continue
            tint = pale(colour(str(points["method"].iloc[0])), min(PALEST, FEWER * rank))
            bars = ax.errorbar(
                points["clip"], points["fid"], xerr=NORMAL * points["se"].fillna(0), color=tint, linewidth=1.2,
                label=_student(label, k), elinewidth=0.8, capsize=2,
            )  # fmt: skip
            found[list(ranks).index(label), rank] = bars
            for row in points.to_dict("records"):
                ax.plot(row["clip"], row["fid"], marker=shapes[row["guidance"]], color=tint, markersize=5)
    return found


def _student(label: str, steps: int) -> str:
    return f"{label}, {steps} step" + "s" * (steps > 1)


def _name(row: dict[Any, Any]) -> str:
    """What a row is, with its steps and weight where it has them."""
    return f"{_student(row['label'], row['steps'])}, w = {row['guidance']:g}" if row["steps"] else str(row["label"])


def _over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """The means over seeds of clip and fid, and `se`, the standard error of clip over images; weights in order."""
    rows = rows.assign(variance=rows["clip_se"].astype(float) ** 2, clip=rows["clip"].astype(float))
    groups = rows.groupby(["label", "method", "backend", "steps", "guidance", "curve"], sort=False)
    error = np.sqrt(groups["variance"].sum(min_count=1)) / groups.size()
    return groups[["clip", "fid"]].mean().assign(se=error).reset_index().sort_values("guidance", kind="stable")


def attributes_figure(records: Sequence[Record], folder: Path) -> dict[str, Figure]:
    """The share of images in which each attribute is right, as `attributes`: rows are methods, a panel for one object
    and one for two; none where no record has them.

    Students stand with the largest number of steps that at least half of them have, or else with their own largest.
    """
    table = frame(records)
    rows = pd.concat([table[table["method"] == "real-data"], _attribute_rows(_main_rows(records))])
    rows = rows[rows["attributes"].notna()]
    backends = [name for name in dict.fromkeys(rows["backend"]) if name != "-"]
    if not backends:
        return {}
    panels = {
        (backend, kind): _shares(rows[rows["backend"].isin([backend, "-"])], kind)
        for backend in backends
        for kind in KINDS
    }
    heights = [len(panels[backend, "one_object"]) for backend in backends]
    widths = [max(panels[backend, kind].shape[1] for backend in backends) for kind in KINDS]
    size = (CELL[0] * sum(widths) + LABELS, CELL[1] * sum(heights) + 1.0 * len(backends))
    canvas, axes = plt.subplots(
        len(backends), 2, figsize=size, height_ratios=heights, width_ratios=widths, squeeze=False
    )
    for line, backend in zip(axes, backends, strict=True):
        for ax, (kind, title) in zip(line, KINDS.items(), strict=True):
            _heatmap(ax, panels[backend, kind], named=ax is line[0])
            ax.set_title(f"{backend}, {title}")
    canvas.tight_layout(w_pad=0.4, h_pad=1.2)
    caption = (
        "The share (in %) of images in which a classifier reads what the caption asked for, by attribute, for captions "
        "with one object and with two; what a caption leaves unsaid is the plain case of the data. The last column, "
        "framed, counts images with everything right. Each method has the steps that its row says; a "
        "teacher also its most, with each guidance weight w. Real images show what the classifier itself gets wrong. "
        "Means over training seeds."
    )
    return {"attributes": Figure(save(canvas, folder, "attributes"), "What captions ask for, by attribute", caption)}


def _attribute_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The teacher with its most steps and with as many as the students, and each student with the latter."""
    teachers, students = rows[rows["method"] == "teacher"], rows[rows["method"] != "teacher"]
    has = students.groupby("steps")["series"].nunique()
    common = has.index[has >= students["series"].nunique() / 2]
    k = int(common.max()) if len(common) else 0
    own = students.groupby(["series", "backend"])["steps"].transform(lambda of: k if (of == k).any() else of.max())
    teachers = teachers[teachers["steps"].isin([teachers["steps"].max(), k])]
    teachers = teachers.sort_values("steps", ascending=False, kind="stable")
    return pd.concat([teachers, students[students["steps"] == own]])


def _shares(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Means over seeds: rows are methods as a reader calls them, columns the attributes of `kind`, all of them last."""
    names = [
        f"{series}, {steps} step{'s' * (steps > 1)}" if steps else "Real images"
        for series, steps in zip(rows["series"], rows["steps"].astype(int), strict=True)
    ]
    found = pd.DataFrame([of.get(kind, {}) for of in rows["attributes"]], index=names)
    columns = [str(name) for name in found if name != JOINT] + [JOINT] * (JOINT in found)
    found = found[columns]
    return found.groupby(level=0, sort=False).mean()


def _heatmap(ax: Axes, shares: pd.DataFrame, *, named: bool) -> None:
    values = shares.to_numpy(float)
    ax.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = "white" if value < 0.6 else "black"
            ax.text(column, row, f"{100 * value:.1f}", ha="center", va="center", fontsize=7, color=ink)
    names = [str(name) for name in shares.columns]
    if JOINT in names:
        column = names.index(JOINT)
        ax.add_patch(Rectangle((column - 0.5, -0.5), 1, len(shares), fill=False, edgecolor="black", linewidth=1.6))
    ax.set_xticks(range(len(names)), names, fontsize=7.5, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(shares)), list(shares.index) if named else [""] * len(shares), fontsize=8)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
