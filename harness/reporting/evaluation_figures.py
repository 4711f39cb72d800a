"""Figures of the evaluation itself: FID against the number of images, and FID while a student trains."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from harness.reporting.records import ALIKE, Record, frame, is_ablation, sample_count, text_to_image
from harness.reporting.style import REFERENCE, Figure, colour, line, log_axis, save, tints


def fid_against_n_figure(records: Sequence[Record], folder: Path) -> dict[str, Figure]:
    """FID over its limit for infinitely many images, against 1/n, as `fid-against-n`; a panel for each step count.

    Of each method, backend and step count without guidance, or with captions of each weight, the first seed; none where
    no record has the limit.
    """
    table = frame(records)
    captioned = text_to_image(table).any()
    table = table[table["fid_by_n"].notna() & (table["fid_infinity"] > 0) & ~is_ablation(table)]
    table = table.drop_duplicates([*ALIKE, "convention", "series", "backend", "steps"])
    tint_of = tints(table)
    panels: list[tuple[Any, Any]] = list(table.groupby([*ALIKE, "steps"], sort=False))
    panels.sort(key=lambda panel: -panel[0][-1])
    if not panels:
        return {}
    n_rows = math.ceil(len(panels) / 2)
    canvas, axes = plt.subplots(n_rows, 2, figsize=(8.4, 3.1 * n_rows), squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (key, rows) in zip(axes.flat, panels, strict=False):
        sizes: set[int] = set()
        for row in rows.to_dict("records"):
            n = np.array(list(row["fid_by_n"]), float)
            ratio = np.array(list(row["fid_by_n"].values())) / row["fid_infinity"]
            style = line(row["backend"]) | {"color": tint_of[row["series"]], "markersize": 4}
            ax.plot(1 / n, ratio, **{**style, "linestyle": ""})
            slope = np.polynomial.Polynomial.fit(1 / n, ratio, 1)
            ax.plot([0, 1 / n.min()], slope(np.array([0, 1 / n.min()])), **{**style, "marker": ""}, linewidth=0.9)
            sizes.update(row["fid_by_n"])
        ax.set_title(f"k = {key[-1]}" + (f", identity {key[1][:8]}" if table["identity"].nunique() > 1 else ""))
        shown = sorted(sizes)
        ax.xaxis.set_major_locator(FixedLocator([0, *(1 / size for size in shown)]))
        ax.xaxis.set_minor_locator(NullLocator())
        names = {0.0: "∞", **{1 / size: sample_count(size) for size in shown}}
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _, names=names: names.get(value, "")))
        ax.set_ylabel("FID over FID-inf")
        ax.set_xlabel("images, on an axis of 1/n")
    canvas.tight_layout()
    drawn = [str(name) for name in dict.fromkeys(table["series"])]
    keys = [Line2D([], [], color=tint_of[name], label=name) for name in drawn]
    keys += [Line2D([], [], color=REFERENCE, label=name, **line(name)) for name in dict.fromkeys(table["backend"])]
    canvas.legend(handles=keys, loc="center left", bbox_to_anchor=(1, 0.5))
    caption = (
        "FID of disjoint parts of the generated images, averaged over the parts, over its extrapolation to infinitely "
        "many (FID-inf), against 1/n: the bias in n falls as 1/n. The lower a method's FID, the larger the share of "
        "its bias, so that with few images methods look more alike than they are. The reference stays what it is. "
        f"Ablations {'' if captioned else 'and guided samples '}are left out; of several seeds the first is shown."
    )
    if captioned:
        caption += " Each guidance weight w has a shade of its own."
    return {"fid-against-n": Figure(save(canvas, folder, "fid-against-n"), "FID against the number of images", caption)}


def selection_figure(records: Sequence[Record], folder: Path) -> dict[str, Figure]:
    """FID at each evaluation during training with the selected one marked, as `selection`; a panel for each run."""
    rows = frame(records).to_dict("records")
    if not rows:
        return {}
    n_rows = math.ceil(len(rows) / 2)
    canvas, axes = plt.subplots(n_rows, 2, figsize=(8.4, 3.0 * n_rows), squeeze=False)
    for ax in axes.flat[len(rows) :]:
        ax.set_visible(False)
    for ax, row in zip(axes.flat, rows, strict=False):
        updates, tint = sorted(row["fid_by_update"], key=int), colour(row["method"])
        ax.plot([int(u) for u in updates], [row["fid_by_update"][u] for u in updates], "o-", color=tint, markersize=4)
        ax.plot(row["best_update"], row["fid"], "o", color=tint, markersize=10, fillstyle="none", label="best")
        ax.plot(row["best_update"], row["fid_fresh"], "x", color=REFERENCE, label="the same weights, fresh noise")
        ax.set_title(f"{row['series']}\nk = {row['steps']}, {row['backend']}, seed {row['seed']}", fontsize=9)
        ax.set_xlabel("updates")
        ax.set_ylabel(f"FID-{sample_count(row['n_samples'])}")
        log_axis(ax)
        ax.legend()
    canvas.tight_layout()
    caption = (
        "FID of a student while it trains, every evaluation with the same noise and labels. The circle is what is "
        "reported as the best of n evaluations; the last point is the final value; the cross is the selected weights' "
        "FID on noise that had no part in the selection. The circle below the cross is selection by noise alone."
    )
    title = "The best of several evaluations, the last, and a fresh one"
    return {"selection": Figure(save(canvas, folder, "selection"), title, caption)}
