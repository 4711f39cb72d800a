"""The prompt gallery of text-to-image profiles: what each method draws for the same captions and the same noise."""

import itertools
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from harness.datasets import ImageSet, shapes
from harness.datasets.archive import load_arrays, map_array
from harness.errors import UserError
from harness.reporting.records import Record, frame, is_ablation
from harness.reporting.style import Figure, save, slug

EACH = 4  # captions of one object, and as many of two
WIDEST = 12  # columns of students in a band
INCHES = 0.46  # side of an image
CAPTION_INCHES, CAPTION_WIDTH = 2.1, 34  # of a caption: its room, and the characters in a line
HEADER_INCHES = 0.8
LETTERS = 8  # of a group's name above each of its columns
GAP = 0.3  # between groups, in widths of an image


@dataclass(frozen=True)
class Column:
    """Images (n, c, h, w) of the chosen captions, what stands above them alone, and above all columns of a group."""

    group: str
    name: str
    images: np.ndarray


def prompt_galleries(records: Sequence[Record], folder: Path, heldout: Path | None) -> dict[str, Figure]:
    """For each backend, `prompts-<backend>`: rows are captions, columns real images, the teacher, and every student.

    `heldout` is the file of the split (`ImageSet`) whose captions the images were drawn for; without it, without
    captions or without kept samples there is no figure. Raises UserError for samples that are of other captions.
    """
    data = None if heldout is None else ImageSet.load(heldout)
    if data is None or data.captions is None:
        return {}
    figures = {}
    for backend in dict.fromkeys(record.row.backend for record in records if record.row.method != "real-data"):
        own = _chosen(records, backend)
        if not own:
            continue
        rows = chosen_captions(data, min(len(_labels(record)) for _, record in own))
        lead = [Column("Real", "", data.pixels[rows])]
        lead += [_column(series, record, rows, data) for series, record in own if _is_teacher(record)]
        students = [_column(series, record, rows, data) for series, record in own if not _is_teacher(record)]
        canvas = _gallery([str(data.captions[row]) for row in rows], lead, _bands(students))
        name = f"prompts-{slug(backend)}"
        kinds = "the first ones of one object, then of two" if data.name == "shapes" else "the first ones of the split"
        caption = (
            f"Captions that no network was trained on: {kinds}, in the order of the data; neither captions nor images "
            "are selected by result. Numbers count a student's sampling steps; w is the guidance weight: of the "
            "teacher's sampling (none, and of those measured the one with the highest CLIP score), or of the teacher "
            "that a student was distilled from. The images of a row share their caption and, with equal seeds, their "
            "initial noise; the real image is the caption's own."
        )
        figures[name] = Figure(save(canvas, folder, name), f"Prompts, {backend}", caption)
    return figures


def chosen_captions(data: ImageSet, n: int) -> np.ndarray:
    """Which of the first n captions are shown: the first ones of one object and of two, or simply the first ones."""
    labels = data.labels[: min(n, len(data))]
    if data.name != "shapes":
        return np.arange(min(2 * EACH, len(labels)))
    single = shapes.SINGLE[labels]
    return np.concatenate([np.flatnonzero(single)[:EACH], np.flatnonzero(~single)[:EACH]])


def _is_teacher(record: Record) -> bool:
    return record.row.method == "teacher"


def _chosen(records: Sequence[Record], backend: str) -> list[tuple[str, Record]]:
    """Series and records that are shown, one for each series and step count (the lowest seed), in their order.

    The teacher's are ancestral, with its most steps: without guidance, and with the weight of the highest CLIP score.
    """
    table = frame(records)
    kept: dict[tuple[str, int], Record] = {}
    for series, record, ablation in zip(table["series"], records, is_ablation(table), strict=True):
        if record.row.backend == backend and not ablation and record.samples.exists():
            kept.setdefault((series, record.row.steps), record)
    teachers = [item for item in kept.items() if _is_teacher(item[1]) and item[1].row.sampler == "ancestral"]
    most = max((steps for (_, steps), _ in teachers), default=0)
    many = {item[1].row.guidance or 0.0: item for item in teachers if item[0][1] == most}
    scores = {w: record.row.clip for w, (_, record) in many.items() if record.row.clip is not None}
    best = [max(scores, key=scores.__getitem__)] if scores else []
    shown = [many[w] for w in dict.fromkeys([0.0, *best]) if w in many]
    order = list(dict.fromkeys(series for series, _ in kept))
    students = [item for item in kept.items() if not _is_teacher(item[1])]
    students.sort(key=lambda item: (order.index(item[0][0]), -item[0][1]))
    return [(series, record) for (series, _), record in shown + students]


def _labels(record: Record) -> np.ndarray:
    labels: np.ndarray = load_arrays(record.samples, "labels")[0]
    return labels


def _column(series: str, record: Record, rows: np.ndarray, data: ImageSet) -> Column:
    labels, images = _labels(record), map_array(record.samples, "images")
    if images.dtype != np.uint8 or images.shape[1:] != data.pixels.shape[1:] or len(images) != len(labels):
        problem = "images must be uint8 and of the data's shape, with one label each"
        raise UserError(f"{record.samples}: {problem}; sample again")
    if (labels[rows] != data.labels[rows]).any():
        problem = f"drawn for other captions than those of {data.name}/{data.split}"
        raise UserError(f"{record.samples}: {problem}; sample again")
    k = record.row.steps
    if _is_teacher(record):
        return Column(f"Teacher, {k} step{'s' * (k > 1)}", f"w = {record.row.guidance or 0:g}", np.array(images[rows]))
    return Column(series, str(k), np.array(images[rows]))


def _bands(columns: Sequence[Column]) -> list[list[Column]]:
    """Columns in as few bands as hold WIDEST each, those of one series together where they fit."""
    series: dict[str, list[Column]] = {}
    for column in columns:
        series.setdefault(column.group, []).append(column)
    bands: list[list[Column]] = [[]]
    for group in series.values():
        if bands[-1] and len(bands[-1]) + len(group) > WIDEST:
            bands.append([])
        bands[-1] += group
    return bands


def _gallery(captions: Sequence[str], lead: Sequence[Column], bands: Sequence[Sequence[Column]]) -> Canvas:
    """Captions at the left, real and the teacher's images, then students; bands of students stand below each other."""
    lines = [[*lead, *band] for band in bands]
    wide = max(_places(line)[-1] + 1 for line in lines)
    width, height = CAPTION_INCHES + wide * INCHES, HEADER_INCHES + len(captions) * INCHES
    canvas = plt.figure(figsize=(width, height * len(lines)))
    for place, line in enumerate(lines):
        box = (CAPTION_INCHES / width, 1 - (place + 1) / len(lines), 1 - CAPTION_INCHES / width, 1 / len(lines))
        ax = canvas.add_axes(box)
        ax.set_xlim(0, wide)
        ax.set_ylim(len(captions), -HEADER_INCHES / INCHES)
        ax.axis("off")
        _band(ax, captions, line)
    return canvas


def _places(columns: Sequence[Column]) -> list[float]:
    """Left ends of columns, in widths of an image: groups stand apart, so that their names do."""
    changes = [0, *(int(a.group != b.group) for a, b in itertools.pairwise(columns))]
    return [i + GAP * gaps for i, gaps in enumerate(itertools.accumulate(changes))]


def _band(ax: Axes, captions: Sequence[str], columns: Sequence[Column]) -> None:
    places = _places(columns)
    for x, column in zip(places, columns, strict=True):
        ax.text(x + 0.5, -0.08, column.name, ha="center", va="bottom", fontsize=7.5)
        for y, image in enumerate(column.images):
            picture = np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))
            extent = (x + 0.03, x + 0.97, y + 0.97, y + 0.03)
            ax.imshow(picture, extent=extent, interpolation="nearest", aspect="auto")
    for y, caption in enumerate(captions):
        text = textwrap.fill(caption, CAPTION_WIDTH)
        ax.text(-0.15, y + 0.5, text, ha="right", va="center", fontsize=7.5, clip_on=False)
    for group in dict.fromkeys(column.group for column in columns):
        own = [x for x, column in zip(places, columns, strict=True) if column.group == group]
        whole = re.sub(r" (?=step|=)|(?<==) ", "\N{NO-BREAK SPACE}", group)  # w = 1 and 32 steps stay in one line
        text = textwrap.fill(whole, LETTERS * len(own), break_long_words=False)
        ax.text((own[0] + own[-1] + 1) / 2, -0.5, text, ha="center", va="bottom", fontsize=7.5)
        ax.plot([own[0] + 0.03, own[-1] + 0.97], [-0.45, -0.45], color="black", linewidth=0.7)
