"""Sample grids: what the metrics are about, seen. Pixels are drawn as they are (nearest neighbour)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from harness.datasets import ImageSet
from harness.datasets.archive import load_arrays
from harness.errors import UserError
from harness.metrics.images import to_uint8
from harness.reporting.records import Record, frame
from harness.reporting.style import Figure, save, slug

CLASSES = 10  # classes shown, the first ones
COLUMNS = 6  # samples of each class in a class grid
PAIRS = 2  # samples of each class in the comparison


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


def _kept(records: Sequence[Record]) -> list[tuple[str, Record]]:
    """Labelled records whose samples were kept, one for each backend, label and step count (the lowest seed)."""
    chosen: dict[tuple[str, str, int], tuple[str, Record]] = {}
    for label, record in zip(frame(records)["label"], records, strict=True):
        if record.samples.exists():
            chosen.setdefault((record.row.backend, label, record.row.steps), (label, record))
    return list(chosen.values())


def _real(path: Path | None) -> tuple[np.ndarray, np.ndarray] | None:
    if path is None:
        return None
    data = ImageSet.load(path)
    return to_uint8(data.images), data.labels


def _without_real(real: object) -> str:
    return "" if real is not None else " No real images were given, so none are shown."


def class_grids(records: Sequence[Record], folder: Path, real_images: Path | None) -> dict[str, Figure]:
    """One figure for each backend and method: rows are classes, a panel for each step count, real images first."""
    real = _real(real_images)
    series: dict[tuple[str, str], list[Record]] = {}
    for label, record in _kept(records):
        if record.row.method != "real-data":
            series.setdefault((record.row.backend, label), []).append(record)
    figures = {}
    for (backend, label), group in series.items():
        panels = [] if real is None else [("Real data", by_class(*real, COLUMNS), real[1])]
        for record in sorted(group, key=lambda item: -item.row.steps):
            images, labels = read_samples(record.samples)
            title = f"{record.row.steps} step{'s' * (record.row.steps > 1)}\nFID {record.row.fid:.3g}"
            panels.append((title, by_class(images, labels, COLUMNS), labels))
        canvas, axes = plt.subplots(1, len(panels), figsize=(1.75 * len(panels), 3.3), squeeze=False)
        for i, (ax, (title, grid, labels)) in enumerate(zip(axes[0], panels, strict=True)):
            _show(ax, grid, [str(value) for value in np.unique(labels)[:CLASSES]] if i == 0 else [])
            ax.set_title(title, fontsize=9)
        canvas.tight_layout(w_pad=0.6)
        name = f"samples-{slug(backend)}-{slug(label)}"
        caption = (
            f"Samples by class (rows), the first ones drawn, not selected: {label}, {backend}. All panels show the "
            "same sample numbers: with equal seeds, the same initial noise." + _without_real(real)
        )
        figures[name] = Figure(save(canvas, folder, name), f"Samples: {label}, {backend}", caption)
    return figures


def comparison_grids(records: Sequence[Record], folder: Path, real_images: Path | None) -> dict[str, Figure]:
    """One figure for each backend: the many-step teacher, then teacher and students at each step count."""
    real = _real(real_images)
    kept = [(label, record) for label, record in _kept(records) if record.row.method != "real-data"]
    figures = {}
    for backend in dict.fromkeys(record.row.backend for _, record in kept):
        own = [(label, record) for label, record in kept if record.row.backend == backend]
        teachers = {
            r.row.steps: (name, r) for name, r in own if (r.row.method, r.row.sampler) == ("teacher", "ancestral")
        }
        students = [(name, record) for name, record in own if record.row.method != "teacher"]
        if not students:
            continue
        groups: list[list[tuple[str, np.ndarray]]] = [[("Real data", _row(*real))]] if real is not None else [[]]
        if teachers:
            groups[0].append(_named(*teachers[max(teachers)]))
        for k in sorted({record.row.steps for _, record in students}, reverse=True):
            at_k = [teachers[k]] if k in teachers and k != max(teachers) else []
            groups.append([_named(*entry) for entry in at_k + [entry for entry in students if entry[1].row.steps == k]])
        groups = [group for group in groups if group]
        classes = np.unique(read_samples(students[0][1].samples)[1])[:CLASSES]
        sizes = [len(group) for group in groups]
        canvas, axes = plt.subplots(
            len(groups), 1, figsize=(9.2, 0.36 * sum(sizes) + 0.12 * len(sizes)), height_ratios=sizes, squeeze=False
        )
        for ax, group in zip(axes[:, 0], groups, strict=True):
            _show(ax, np.stack([row for _, row in group]), [name for name, _ in group])
        _class_names(axes[0, 0], groups[0][0][1].shape[-1] + 1, classes)
        canvas.subplots_adjust(hspace=0.12)
        name = f"comparison-{slug(backend)}"
        caption = (
            "The teacher with its most steps, then teacher and students side by side at equal step counts; a column "
            "shows one class and one sample number: with equal seeds, the same initial noise. Students should look "
            "like the first rows, not like the teacher at their own step count." + _without_real(real)
        )
        figures[name] = Figure(save(canvas, folder, name), f"Teacher and students, {backend}", caption)
    return figures


def _class_names(ax: Axes, pitch: int, classes: np.ndarray) -> None:
    ax.set_xticks([pitch * PAIRS * (i + 0.5) - 1 for i in range(len(classes))], [str(value) for value in classes])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)


def _row(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Images of one comparison row, class after class: (classes * PAIRS, c, h, w)."""
    grid = by_class(images, labels, PAIRS)
    return grid.reshape(-1, *grid.shape[2:])


def _named(label: str, record: Record) -> tuple[str, np.ndarray]:
    return f"{label}, {record.row.steps} step{'s' * (record.row.steps > 1)}", _row(*read_samples(record.samples))
