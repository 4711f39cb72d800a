"""Figures of text-to-image profiles: what guidance buys, and which attributes come out right."""

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
FEWER, PALEST = 0.3, 0.75  # share of white in a curve's colour: from one step count to the next smaller one, at most
KINDS = {"one_object": "one object", "two_objects": "two objects"}
JOINT = "joint"
CELL, LABELS = (0.42, 0.23), 2.7  # inches of a cell of the attributes' figure, and of its rows' names


def guidance_figure(records: Sequence[Record], folder: Path) -> dict[str, Figure]:
    """FID against CLIP score over the guidance weight, as `guidance`: a panel for each backend.

    A curve for each method and step count that has several weights, and a point for each other student with the most
    steps. None where there are no CLIP scores, or no guidance.
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
    floors = floors[floors["method"] == "real-data"]
    handles: dict[tuple[int, int], Any] = {}
    for panels, block in zip(axes, blocks, strict=True):
        n = sample_count(int(block["n_samples"].iloc[0]))
        real = floors.merge(block[ALIKE].drop_duplicates())
        for ax, backend in zip(panels, backends, strict=True):
            handles |= _guidance_panel(ax, block[block["backend"] == backend], list(dict.fromkeys(table["label"])))
            ax.set_title(backend + (f", identity {block['identity'].iloc[0][:8]}" if len(blocks) > 1 else ""))
            ax.set_xlabel(f"CLIP score-{n} (higher is better)")
            if len(real):
                style = {"color": REFERENCE, "markersize": 9, "linestyle": "", "label": "Real data"}
                handles[len(table), 0] = ax.plot(real["clip"], real["fid"], marker="*", **style)[0]
        panels[0].set_ylabel(f"FID-{n} (lower is better)")
        panels[0].margins(0.16, 0.12)
        log_axis(panels[0])
    canvas.tight_layout()
    canvas.legend(handles=[handles[key] for key in sorted(handles)], loc="center left", bbox_to_anchor=(1, 0.5))
    caption = (
        "FID (logarithmic) against CLIP score over the weight w of classifier-free guidance g_c + w (g_c - g_u), which "
        "stands at each point: of a teacher's own sampling, whose guided steps cost two network evaluations, or of the "
        "teacher that a student was distilled from. Curves are paler with fewer steps. Where a method has one weight "
        "alone, its student with the most steps is a point. Bars: 95% intervals of the CLIP score over images. Further "
        "right, images show more of their captions; further down, they are closer to real images. The star is real "
        "images with their own captions."
    )
    return {"guidance": Figure(save(canvas, folder, "guidance"), "FID against CLIP score over guidance", caption)}


def _main_rows(records: Sequence[Record]) -> pd.DataFrame:
    """Trained networks, no ablations; the teacher's sampling is the ancestral one."""
    table = frame(records)
    other = (table["method"] == "teacher") & (table["sampler"] != "ancestral")
    return table[(table["method"] != "real-data") & ~is_ablation(table) & ~other]


def _guidance_panel(ax: Axes, rows: pd.DataFrame, labels: Sequence[str]) -> dict[tuple[int, int], Any]:
    """Draw the curves of one backend; returns what the legend shows of them, by their place in it."""
    most = rows.loc[rows["method"] != "teacher", "steps"].max()
    found: dict[tuple[int, int], Any] = {}
    for label, own in rows.groupby("label", sort=False):
        method = str(own["method"].iloc[0])
        curves = [part for _, part in own.groupby("steps", sort=False) if part["guidance"].nunique() > 1]
        lone = [] if curves or method == "teacher" else [own[own["steps"] == most]]
        for rank, part in enumerate(sorted(curves, key=_steps, reverse=True) + [part for part in lone if len(part)]):
            points, k, tint = _over_seeds(part), _steps(part), pale(colour(method), min(PALEST, FEWER * rank))
            name = f"{label}, {k} step{'s' * (k > 1)}"
            if len(points) == 1:
                name += f", w = {points['guidance'].iloc[0]:g}"
            bars = ax.errorbar(
                points["clip"], points["fid"], xerr=NORMAL * points["se"].fillna(0), label=name, color=tint,
                linestyle="-" if len(points) > 1 else "", marker="o", markersize=4, elinewidth=0.8, capsize=2,
            )  # fmt: skip
            found[labels.index(str(label)), rank if curves else -1] = bars
            for place, row in enumerate(points.to_dict("records") if curves else []):
                text = f"{row['guidance']:g}" if place else f"w = {row['guidance']:g}"
                side: dict[str, Any] = {"xytext": (-3, -10), "ha": "right"}  # neighbours on opposite sides
                if place % 2 == 0:
                    side = {"xytext": (3, 4) if place else (-3, 4), "ha": "left" if place else "right"}
                at = (row["clip"], row["fid"])
                ax.annotate(text, at, textcoords="offset points", fontsize=8, color=tint, **side)
    return found


def _steps(rows: pd.DataFrame) -> int:
    return int(rows["steps"].iloc[0])


def _over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """By guidance weight, the means over seeds of clip and fid, and `se`, the standard error of clip over images."""
    rows = rows.assign(variance=rows["clip_se"].astype(float) ** 2)
    groups = rows.groupby("guidance", sort=True)
    error = np.sqrt(groups["variance"].sum(min_count=1)) / groups.size()
    return groups[["clip", "fid"]].mean().assign(se=error).reset_index()


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
