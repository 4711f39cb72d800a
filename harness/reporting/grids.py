"""Sample grids: what the metrics are about, seen. Pixels are drawn as they are (nearest neighbour)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from harness.datasets import ImageSet
from harness.datasets.archive import load_arrays
from harness.errors import UserError
from harness.reporting.records import Record, frame, is_ablation, sample_count
from harness.reporting.style import Figure, save, slug

CLASSES = 10  # classes shown, the first ones
COLUMNS = 6  # samples of each class in a class grid
EACH = 1  # samples of each class in the comparison
INCHES = 0.33  # height of an image in the comparison


def read_samples(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (n, c, h, w), and labels, int64 (n,), of an npz file. Raises UserError if it is not one."""
    images, labels = load_arrays(path, "images", "labels")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != len(labels):
        raise UserError(f"{path}: images must be uint8 (n, 1 or 3, h, w) with one label each; sample again")
    return images, labels


def by_class(images: np.ndarray, labels: np.ndarray, columns: int) -> np.ndarray:
    """The first `columns` images of each class shown: (classes, columns, c, h, w); too few leave white images."""
    classes = np.unique(labels)[:CLASSES]
    grid = np.full((len(classes), columns, *images.shape[1:]), 255, np.uint8)
    for row, number in enumerate(classes):
        chosen = images[np.flatnonzero(labels == number)[:columns]]
        grid[row, : len(chosen)] = chosen
    return grid


def tile(grid: np.ndarray) -> np.ndarray:
    """Images (rows, columns, c, h, w) as one picture (rows (h+1) - 1, columns (w+1) - 1, 3) with white gaps."""
    padded = np.pad(grid, [(0, 0)] * 3 + [(0, 1), (0, 1)], constant_values=255)
    rows, columns, channels, height, width = padded.shape
    picture = padded.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)[:-1, :-1]
    return np.broadcast_to(picture, (*picture.shape[:2], 3))


def _show(ax: Axes, grid: np.ndarray, row_labels: Sequence[str]) -> None:
    picture = tile(grid)
    pitch = grid.shape[3] + 1
    ax.imshow(picture, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([pitch * (row + 0.5) - 1 for row in range(len(row_labels))], row_labels)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


class Kept(NamedTuple):
    """A record whose samples were kept, as a reader calls it."""

    label: str
    record: Record
    ablation: bool


def _kept(records: Sequence[Record]) -> list[Kept]:
    """The kept records, one for each backend, label and step count (the lowest seed)."""
    chosen: dict[tuple[str, str, int], Kept] = {}
    table = frame(records)
    for label, record, ablation in zip(table["label"], records, is_ablation(table), strict=True):
        if record.samples.exists():
            chosen.setdefault((record.row.backend, label, record.row.steps), Kept(label, record, ablation))
    return list(chosen.values())


def _real(path: Path | None) -> tuple[np.ndarray, np.ndarray] | None:
    if path is None:
        return None
    data = ImageSet.load(path)
    return data.pixels, data.labels


def _without_real(real: object) -> str:
    return "" if real is not None else " No real images were given, so none are shown."


def class_grids(records: Sequence[Record], folder: Path, real_images: Path | None) -> dict[str, Figure]:
    """One figure for each method: rows are classes, a panel for each backend and step count, real images first.

    Ablations are left out; they stand beside each other in `comparison_grids`.
    """
    real = _real(real_images)
    series: dict[str, list[Record]] = {}
    for entry in _kept(records):
        if entry.record.row.method != "real-data" and not entry.ablation:
            series.setdefault(entry.label, []).append(entry.record)
    figures = {}
    for label, group in series.items():
        lines = [
            [_class_panel(record) for record in group if record.row.backend == backend][::-1]
            for backend in dict.fromkeys(record.row.backend for record in group)
        ]
        if real is not None:
            lines = [[("Real data", by_class(*real, COLUMNS), real[1]), *line] for line in lines]
        wide = max(len(line) for line in lines)
        canvas, axes = plt.subplots(len(lines), wide, figsize=(1.75 * wide, 3.3 * len(lines)), squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for panels, line in zip(axes, lines, strict=True):
            for ax, (title, grid, labels) in zip(panels, line, strict=False):
                ax.set_axis_on()
                _show(ax, grid, [str(value) for value in np.unique(labels)[:CLASSES]] if ax is panels[0] else [])
                ax.set_title(title, fontsize=9)
        canvas.tight_layout(w_pad=0.6)
        name = f"samples-{slug(label)}"
        caption = (
            f"Samples by class (rows), the first ones drawn, not selected: {label}. All panels show the same sample "
            "numbers: with equal seeds, the same initial noise." + _without_real(real)
        )
        figures[name] = Figure(save(canvas, folder, name), f"Samples: {label}", caption)
    return figures


def _class_panel(record: Record) -> tuple[str, np.ndarray, np.ndarray]:
    images, labels = read_samples(record.samples)
    row = record.row
    title = f"{row.backend}, {_steps(row.steps)}\nFID-{sample_count(row.n_samples)} {row.fid:.3g}"
    return title, by_class(images, labels, COLUMNS), labels


def comparison_grids(records: Sequence[Record], folder: Path, real_images: Path | None) -> dict[str, Figure]:
    """For each backend, real data, teacher and students below each other, a panel for each step count.

    `comparison-<backend>` shows the methods, `ablations-<backend>` their variants beside the default ones.
    """
    real = _real(real_images)
    entries = [entry for entry in _kept(records) if entry.record.row.method != "real-data"]
    figures = {}
    for backend in dict.fromkeys(entry.record.row.backend for entry in entries):
        own = [entry for entry in entries if entry.record.row.backend == backend]
        plain = [entry for entry in own if not entry.ablation]
        teachers = {e.record.row.steps: e.record for e in plain if _is_ancestral_teacher(e.record)}
        students = [entry for entry in plain if entry.record.row.method != "teacher"]
        variants = [entry for entry in own if entry.ablation and entry.record.row.method != "teacher"]
        varied = {(entry.record.row.method, entry.record.row.steps) for entry in variants}
        beside = [entry for entry in students if (entry.record.row.method, entry.record.row.steps) in varied]
        for kind, title, shown in (
            ("comparison", "Teacher and students", students),
            ("ablations", "Ablations", beside + variants),
        ):
            if shown:
                name = f"{kind}-{slug(backend)}"
                canvas = _comparison(teachers, shown, real)
                caption = (
                    "Real images, the teacher with its most steps, then teacher and students with as many steps as "
                    "the panel says. A column shows one class and one sample number: with equal seeds, the same "
                    "initial noise. Students should look like the first rows, not like the teacher at their own step "
                    "count." + _without_real(real)
                )
                figures[name] = Figure(save(canvas, folder, name), f"{title}, {backend}", caption)
    return figures


def _is_ancestral_teacher(record: Record) -> bool:
    return (record.row.method, record.row.sampler) == ("teacher", "ancestral")


def _comparison(
    teachers: dict[int, Record], students: Sequence["Kept"], real: tuple[np.ndarray, np.ndarray] | None
) -> Canvas:
    """Rows are real data, the many-step teacher, the teacher, and each label; a panel for each step count, two abreast.

    A label without images in a row of panels is left out of it; where it lacks one panel's, it stays blank there.
    """
    steps = sorted({entry.record.row.steps for entry in students}, reverse=True)
    lines: dict[str, dict[int, np.ndarray]] = {}
    if real is not None:
        lines["Real data"] = dict.fromkeys(steps, _row(*real))
    if teachers:
        most = max(teachers)
        lines[f"Teacher, {_steps(most)}"] = dict.fromkeys(steps, _row(*read_samples(teachers[most].samples)))
        few = [k for k in steps if k in teachers and k != most]
        lines |= {"Teacher": {k: _row(*read_samples(teachers[k].samples)) for k in few}}
    for entry in students:
        lines.setdefault(entry.label, {})[entry.record.row.steps] = _row(*read_samples(entry.record.samples))
    blank = np.full_like(_row(*read_samples(students[0].record.samples)), 255)
    abreast = [steps[i : i + 2] for i in range(0, len(steps), 2)]
    shown = [[name for name, images in lines.items() if images.keys() & set(ks)] for ks in abreast]
    heights = [len(names) + 1.5 for names in shown]  # the title takes the room of a row and a half
    canvas, axes = plt.subplots(
        len(abreast),
        len(abreast[0]),
        figsize=(INCHES * len(blank) * len(abreast[0]), INCHES * sum(heights)),
        height_ratios=heights,
        squeeze=False,
    )
    canvas.subplots_adjust(wspace=0.03, hspace=0.06)
    for panels, ks, names in zip(axes, abreast, shown, strict=True):
        panels[-1].set_visible(len(ks) == len(panels))
        for ax, k in zip(panels, ks, strict=False):
            grid = np.stack([lines[name].get(k, blank) for name in names])
            _show(ax, grid, names if ax is panels[0] else [])
            ax.set_title(_steps(k))
    return canvas


def _row(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Images of one comparison row, class after class: (classes * EACH, c, h, w)."""
    grid = by_class(images, labels, EACH)
    return grid.reshape(-1, *grid.shape[2:])


def _steps(k: int) -> str:
    return f"{k} step{'s' * (k > 1)}"
