"""Training curves: loss, gradient norm and learning rate over updates, one figure a method; the instant loss alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, SymmetricalLogLocator

from harness.errors import UserError
from harness.reporting.records import Record, method_name
from harness.reporting.style import LINES, REFERENCE, Figure, colour, log_axis, plain, save, slug

# Turns whose loss is an inner product of either sign: its level does not measure progress (algorithm 2).
SIGNLESS = {(name, "student") for name in ("moment-matching/alternating", "diff-instruct", "dmd", "dmd2")}
INSTANT = ("moment-matching/instant", "student")  # the turn whose loss is equation 9's, and falls to zero
WINDOWS = 40  # the running mean spans 1/40 of a curve
SMOOTH = 16  # and 1/16 of an instant loss, whose single estimates scatter more


def read_log(path: Path) -> list[dict[str, Any]]:
    """The updates of a training log (JSON lines). Raises UserError naming the line and key that cannot be used."""
    updates = []
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        try:
            update = json.loads(text)
            missing = {"update", "turn", "loss", "mean_loss", "learning_rate", "gradient_norm"} - set(update)
        except (ValueError, TypeError):
            raise UserError(f"{path}: line {number} is not a JSON object; train again, or remove the file") from None
        if missing:
            raise UserError(f"{path}: line {number} lacks {sorted(missing)[0]!r}; train again, or remove the file")
        updates.append(update)
    return updates


def instant_curves(records: Sequence[Record]) -> dict[str, tuple[Record, np.ndarray, np.ndarray]]:
    """By a readable name, each default instant run that left a log: a record, updates (n,) and equation-9 loss (n,).

    The loss is the mean over the updates since the line before, where the log has it: a single one scatters too much.
    """
    method, turn = INSTANT
    curves = {}
    for record in records:
        if (record.row.method, record.row.variant) == (method, "default") and record.log.exists():
            name = f"{_student(record.student)}, {record.row.backend}, seed {record.row.seed}"
            updates = [update for update in read_log(record.log) if update["turn"] == turn]
            x = np.array([update["update"] for update in updates], float)
            curves[name] = (record, x, np.array([update["mean_loss"] for update in updates], float))
    return curves


def running_mean(x: np.ndarray, y: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of every `window` neighbours of y, each at the middle of their x: two arrays (n - window + 1,)."""
    mean = np.convolve(y, np.full(window, 1 / window), mode="valid")
    return x[window // 2 :][: len(mean)], mean


def instant_loss(records: Sequence[Record], folder: Path) -> dict[str, Figure]:
    """The loss of equation 9 over the training of every instant student, as `instant-loss`; no logs, no figure."""
    curves = instant_curves(records)
    if not curves:
        return {}
    students = sorted({record.student for record, _, _ in curves.values()}, key=lambda name: (len(name), name))
    tints = dict(zip(students, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(students))), strict=True))
    backends = list(dict.fromkeys(record.row.backend for record, _, _ in curves.values()))
    canvas, axes = plt.subplots(1, len(backends), figsize=(4.4 * len(backends), 3.6), squeeze=False, sharey=True)
    canvas.subplots_adjust(wspace=0.08)
    for record, x, y in curves.values():
        ax, tint = axes[0, backends.index(record.row.backend)], tints[record.student]
        ax.plot(x, y, ".", color=tint, alpha=0.2, markersize=2, rasterized=True)
        ax.plot(*running_mean(x, y, max(1, len(y) // SMOOTH)), color=tint, linewidth=1.4)
    # Linear about zero, as far as the last values scatter there; logarithmic above.
    last = np.concatenate([y[-max(1, len(y) // 10) :] for _, _, y in curves.values()])
    scatter = float(np.median(np.abs(last))) or 1.0
    decade = 10 ** np.floor(np.log10(scatter))
    threshold = decade * next(step for step in (1, 2, 5, 10) if step * decade >= scatter)
    axes[0, 0].set_yscale("symlog", linthresh=threshold)
    low, high = axes[0, 0].get_ylim()
    ticks = SymmetricalLogLocator(base=10, linthresh=threshold, subs=(1, 2, 5)).tick_values(low, high)
    axes[0, 0].yaxis.set_major_locator(FixedLocator([y for y in ticks if y == 0 or abs(y) >= threshold]))
    for ax, backend in zip(axes[0], backends, strict=True):
        ax.axhline(0, color=REFERENCE, linewidth=0.8)
        ax.yaxis.set_major_formatter(FuncFormatter(plain))
        ax.set_title(backend)
        ax.set_xlabel("update")
    axes[0, 0].set_ylabel("loss of equation 9")
    handles = [Line2D([], [], color=tints[name], label=_student(name)) for name in students]
    canvas.legend(handles=handles, loc="center left", bbox_to_anchor=(0.92, 0.5))
    caption = (
        "The loss of equation 9, which falls to zero as the student's moments approach the teacher's. Dots: its "
        "unbiased two-batch estimate as logged, of either sign where the loss is small; lines: running "
        f"mean over 1/{SMOOTH} of the run, one for each seed. The axis is linear about zero and logarithmic above, so "
        "that an exponential decay is a straight line until it meets the scatter about zero."
    )
    return {"instant-loss": Figure(save(canvas, folder, "instant-loss"), "Instant moment matching: the loss", caption)}


def training_curves(records: Sequence[Record], folder: Path) -> dict[str, Figure]:
    """One figure for each method and variant with a log beside its records: rows are turns, colours students."""
    runs: dict[tuple[str, str], dict[Path, Record]] = {}
    absent: dict[tuple[str, str], set[Path]] = {}
    for record in records:
        key = (record.row.method, record.row.variant)
        if record.log.exists():
            runs.setdefault(key, {}).setdefault(record.log, record)
        elif record.row.method != "real-data":
            absent.setdefault(key, set()).add(record.log)
    return {
        f"training-{slug(method)}{'' if variant == 'default' else '-' + slug(variant)}": _figure(
            method, variant, list(logs.values()), len(absent.get((method, variant), ())), folder
        )
        for (method, variant), logs in runs.items()
    }


def _figure(method: str, variant: str, runs: list[Record], absent: int, folder: Path) -> Figure:
    logs = [(record, read_log(record.log)) for record in runs]
    rows = list(dict.fromkeys((u["turn"], name) for _, log in logs for u in log for name in u["gradient_norm"]))
    students = sorted({record.student for record in runs}, key=lambda name: (len(name), name))
    tints = dict(zip(students, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(students))), strict=True))
    if len(students) == 1:
        tints = {students[0]: colour(method)}
    canvas, axes = plt.subplots(len(rows), 3, figsize=(10, 2.5 * len(rows)), squeeze=False, sharex=True)
    for (turn, network), panels in zip(rows, axes, strict=True):
        signless = (method, turn) in SIGNLESS
        for record, log in logs:
            updates = [u for u in log if u["turn"] == turn and network in u["gradient_norm"]]
            style = {"color": tints[record.student], "linestyle": LINES.get(record.row.backend, ":")}
            x = np.array([u["update"] for u in updates], float)
            curves = (
                [u["loss"] for u in updates],
                [u["gradient_norm"][network] for u in updates],
                [u["learning_rate"] for u in updates],
            )
            for panel, values in zip(panels, curves, strict=True):
                _curve(panel, x, np.array(values, float), style, faint=0 if panel is panels[2] else 0.4 / len(runs))
        titles = (f"loss of the {turn} turn", f"gradient norm, {network}", f"learning rate, {turn} turn")
        for panel, title in zip(panels, titles, strict=True):
            panel.set_title(title + (" (signless)" if signless and panel is panels[0] else ""))
        _scale(panels[0])
        _scale(panels[1])
        panels[2].yaxis.set_major_formatter(FuncFormatter(plain))
    for panel in axes[-1]:
        panel.set_xlabel("update")
    names = list(dict.fromkeys(record.row.backend for record in runs))
    handles = [Line2D([], [], color=tints[name], label=_student(name)) for name in students if len(students) > 1]
    handles += [Line2D([], [], color=REFERENCE, linestyle=LINES.get(name, ":"), label=name) for name in names]
    canvas.tight_layout()
    canvas.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(handles), handlelength=3)
    name = method_name(method) + ("" if variant == "default" else f" [{variant}]")
    stem = f"training-{slug(method)}{'' if variant == 'default' else '-' + slug(variant)}"
    return Figure(save(canvas, folder, stem), f"Training curves: {name}", _caption(method, rows, students, absent))


def _caption(method: str, rows: list[tuple[str, str]], students: list[str], absent: int) -> str:
    text = "Loss, gradient norm before clipping, and learning rate over updates, one row a trained network; "
    text += "colour: student, " if len(students) > 1 else ""
    text += "line: backend. Faint: every logged update; bold: running mean over 1/40 of the run. "
    if any((method, turn) in SIGNLESS for turn, _ in rows):
        text += (
            "The student's loss holds an inner product with no fixed sign (symmetric logarithmic axis): neither its "
            "sign nor its level says how good the student is; look for bursts in it, not for a trend. "
        )
    return text + (f"{absent} run(s) left no training log and are not drawn." if absent else "")


def _student(name: str) -> str:
    """`k8` or, distilled from a guided teacher, `k8-w1` as a reader writes it."""
    student, guided, weight = name.partition("-w")
    shown = f"k = {student[1:]}" if student[:1] == "k" and student[1:].isdigit() else student
    return f"{shown}, w = {weight}" if guided else shown


def _curve(ax: Axes, x: np.ndarray, y: np.ndarray, style: dict[str, Any], *, faint: float) -> None:
    window = max(1, len(y) // WINDOWS)
    if not faint or window == 1:
        ax.plot(x, y, linewidth=1.3, **style)
        return
    # Rasterised: tens of thousands of points would make the SVG megabytes large.
    ax.plot(x, y, linewidth=0.5, alpha=faint, rasterized=True, **style | {"linestyle": "-"})
    ax.plot(*running_mean(x, y, window), linewidth=1.4, **style)


def _scale(ax: Axes) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines] or [np.ones(1)])
    if (values > 0).all():
        log_axis(ax)
        return
    # Linear where nine of ten values lie, so that logarithmic ticks crowd around zero for bursts alone.
    ax.set_yscale("symlog", linthresh=float(np.quantile(np.abs(values), 0.9)) or 1.0)
    ax.yaxis.set_major_formatter(FuncFormatter(plain))
    ax.axhline(0, color=REFERENCE, linewidth=0.8)
