"""How figures look: one colour a method, one line style a backend, colour-blind safe (Okabe and Ito), and saving."""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from harness.files import write_atomic

COLOURS = {
    "teacher": "#000000",
    "moment-matching/alternating": "#0072B2",
    "moment-matching/instant": "#D55E00",
    "progressive": "#009E73",
    "consistency-distillation": "#CC79A7",
    "consistency-training": "#E69F00",
    "multistep-consistency": "#56B4E9",
    "diff-instruct": "#882255",
    "dmd": "#999933",
    "dmd2": "#332288",
}
OTHER_COLOURS = ["#44AA99", "#AA4499", "#117733", "#661100"]
SECOND_SAMPLER = "#8C8C8C"
REFERENCE = "#6E6E6E"
LINES: dict[str, Any] = {"torch": "-", "jax": (0, (4, 2))}
MARKERS = {"torch": "o", "jax": "s"}
PALER, PALEST = 0.35, 0.7  # share of white: from one guidance weight to the next, and at the most
LABEL_POINTS = 11.0  # vertical room of one label, in points

STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "svg.hashsalt": "fewstep",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Figure:
    """A written figure: its PNG (an SVG of the same name lies beside it), a title, and how to read it."""

    path: Path
    title: str
    caption: str


def use_style() -> None:
    """Set the look of every figure drawn from here on."""
    sns.set_theme(context="paper", style="ticks", rc=STYLE)


def colour(method: str, sampler: str = "ancestral") -> str:
    """The colour of a method; a teacher sampled otherwise than ancestrally is grey."""
    if method == "teacher" and sampler != "ancestral":
        return SECOND_SAMPLER
    return COLOURS.get(method) or OTHER_COLOURS[sum(method.encode()) % len(OTHER_COLOURS)]


def tints(table: pd.DataFrame) -> dict[str, str]:
    """The colour of each series of `frame`: its method's, paler with every further guidance weight of the same label.

    A student's full colour is that of the weight that most students have, a teacher's that of its smallest weight.
    """
    found: dict[str, str] = {}
    students = table[~table["method"].isin(["teacher", "real-data"])].drop_duplicates("series")
    common = students["guidance"].mode().tolist()[:1]
    for _, rows in table.groupby("label", sort=False):
        rows = rows.assign(other=~rows["guidance"].isin(common) & (rows["method"] != "teacher"))
        names = list(dict.fromkeys(rows.sort_values(["other", "guidance"], kind="stable")["series"]))
        base = colour(str(rows["method"].iloc[0]), str(rows["sampler"].iloc[0]))
        step = min(PALER, PALEST / max(1, len(names) - 1))
        found |= {str(name): pale(base, step * i) if i else base for i, name in enumerate(names)}
    return found


def pale(tint: str, share: float) -> str:
    """A colour with this share of white in it."""
    red, green, blue = (1 - (1 - value) * (1 - share) for value in to_rgb(tint))
    return to_hex((red, green, blue))


def line(backend: str) -> dict[str, Any]:
    """Line style and marker of a backend."""
    fill = "none" if backend == "jax" else "full"  # so that equal curves both show
    return {"linestyle": LINES.get(backend, ":"), "marker": MARKERS.get(backend, "^"), "fillstyle": fill}


def slug(text: str) -> str:
    """A label as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def margin_labels(ax: Axes, entries: Iterable[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) right of the axes, moved apart vertically, each joined to its data point.

    Limits and scales of `ax` must be final.
    """
    height = ax.get_window_extent().height * 72 / ax.figure.get_dpi()
    gap = LABEL_POINTS / height
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = sorted((float(to_axes.transform((x, y))[1]), x, y, text, tint) for x, y, text, tint in entries)
    levels = [level for level, *_ in placed]
    for _ in range(200):  # neighbours that are too close push each other apart
        for i in range(1, len(levels)):
            push = max(0.0, gap - (levels[i] - levels[i - 1])) / 2
            levels[i - 1], levels[i] = levels[i - 1] - push, levels[i] + push
    for level, (_, x, y, text, tint) in zip(levels, placed, strict=True):
        ax.annotate(
            text,
            xy=(x, y),
            xytext=(1.04, level),
            textcoords=ax.transAxes,
            color=tint,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": tint,
                "linewidth": 0.6,
                "alpha": 0.45,
                "shrinkB": 4,
                "shrinkA": 1,
                "relpos": (0, 0.5),
            },
        )


def log_axis(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers, and enough of them where it spans less than three decades."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(plain))
    ax.yaxis.set_minor_formatter(NullFormatter())


def plain(value: float, _: object = None) -> str:
    """A tick's number without powers of ten."""
    return f"{value:g}"


def save(canvas: Canvas, folder: Path, name: str) -> Path:
    """Write `name`.png and `name`.svg atomically, the same bytes for the same drawing; close the figure."""
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=kind, metadata=metadata)
        write_atomic(folder / f"{name}.{kind}", buffer.getvalue())
    plt.close(canvas)
    return folder / f"{name}.png"
