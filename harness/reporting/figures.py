"""Figures against the step count and the training compute, and the one call that draws every figure."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from harness.diffusion import Clock
from harness.files import write_atomic
from harness.reporting.ablation_figures import ablation_figures
from harness.reporting.caption_figures import attributes_figure, guidance_figure
from harness.reporting.evaluation_figures import fid_against_n_figure, selection_figure
from harness.reporting.grids import class_grids, comparison_grids
from harness.reporting.implied_weighting import implied_weighting_figure
from harness.reporting.prompt_gallery import prompt_galleries
from harness.reporting.records import (
    ALIKE,
    count,
    frame,
    is_ablation,
    load_records,
    matched_guidance,
    over_seeds,
    plain_teachers,
    sample_count,
    text_to_image,
)
from harness.reporting.style import (
    REFERENCE,
    Figure,
    line,
    log_axis,
    margin_labels,
    plain,
    save,
    tints,
    use_style,
)
from harness.reporting.training_curves import instant_loss, training_curves

CAPTIONS = "captions.json"


IMPLIED_STEPS = (8, 64)  # few, as of students, and many


def write_figures(
    paths: Sequence[Path | str],
    folder: Path | str,
    real_images: Path | str | None = None,
    clock: Clock | None = None,
    selected: Sequence[Path | str] = (),
    heldout: Path | str | None = None,
) -> dict[str, Figure]:
    """Draw every figure of the records at `paths` into an existing folder, as PNG and SVG, beside captions.json.

    Samples and training logs are looked for beside each record; a figure whose inputs are absent is left out or says
    what it lacks. `real_images` is the file of a data set (`ImageSet`), whose images stand beside the samples; the
    implied weighting is that of sampling on `clock`; `selected` are the records of the best of n evaluations; `heldout`
    is the file of the split whose captions a text-to-image profile draws images for. Such a profile has figures of
    captions and guidance in place of those of classes. Returns {name: figure}; raises UserError for inputs that cannot
    be read.
    """
    records, folder = load_records(paths), Path(folder)
    use_style()
    means = over_seeds(frame(records))
    figures = {"fid": fid_figure(means, folder)} | compute_figure(means, folder)
    figures["memorisation"] = memorisation_figure(means, folder)
    real = Path(real_images) if real_images else None
    captioned = bool(text_to_image(means).any())
    if captioned:
        figures |= clip_figure(means, folder) | guidance_figure(records, folder) | attributes_figure(records, folder)
        figures |= prompt_galleries(records, folder, Path(heldout) if heldout else None)
    figures |= {} if captioned else comparison_grids(records, folder, real)
    figures |= instant_loss(records, folder)
    figures |= ablation_figures(records, folder, real) | fid_against_n_figure(records, folder)
    figures |= selection_figure(load_records(selected), folder) if selected else {}
    if clock is not None:
        figures |= implied_weighting_figure(clock, IMPLIED_STEPS, folder)
    figures |= {} if captioned else class_grids(records, folder, real)
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


def clip_figure(means: pd.DataFrame, folder: Path) -> dict[str, Figure]:
    """CLIP score against sampling steps, as `clip`, with that of real images; no scores, no figure."""
    if means["clip"].isna().all():
        return {}
    canvas = against_steps(means, "clip", "clip", "Real data", "CLIP score-{n} (higher is better)", log=False)
    caption = (
        "CLIP score, 100 times the cosine between image and caption, against the number of sampling steps "
        "(logarithmic); the axis does not start at zero. The dotted line is real images with their own captions. "
        + _reading(means)
    )
    return {"clip": Figure(save(canvas, folder, "clip"), "CLIP score against sampling steps", caption)}


def memorisation_figure(means: pd.DataFrame, folder: Path) -> Figure:
    """Distance to the nearest training image against that of held-out real images."""
    ylabel = "distance to the nearest training image\n(mean Euclidean, pixels in [-1, 1])"
    held = means["nn_distance_heldout"].notna().any()
    canvas = against_steps(means, "nn_distance", "nn_distance_heldout", "Held-out real images", ylabel, log=False)
    caption = (
        "Mean distance from a sample to its nearest training image; the axis does not start at zero. "
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
    text = "A panel for each backend, on one scale; colour: method."
    if (means["seeds"] > 1).any():
        text += " Bars: one standard deviation over training seeds."
    captioned = text_to_image(means).any()
    if captioned:
        text += " Each guidance weight w is a curve of its own, in a shade of the method's colour."
    if is_ablation(means).any():
        text += f" Ablations {'' if captioned else 'and guided samples '}are left out: see their table."
    if means["identity"].nunique() > 1:
        text += " A row of panels for each identity: values of different rows are not comparable."
    return text


def against_steps(
    means: pd.DataFrame, metric: str, level: str, level_name: str, ylabel: str, *, log: bool = True
) -> Canvas:
    """Draw `metric` over steps, and the real-data record's `level` as a dotted line; ablations are left out.

    One row of panels for each identity, one column for each backend; the last panel of a row names the curves, and
    each other one those that the last lacks.
    """
    means = means[~is_ablation(means)]
    tint_of = tints(means)
    blocks = [block for _, block in means.groupby(ALIKE, sort=False)]
    backends = [name for name in dict.fromkeys(means["backend"]) if name != "-"] or ["-"]
    size = (4.4 * len(backends) + 0.8, 4.2 * len(blocks))
    canvas, axes = plt.subplots(len(blocks), len(backends), figsize=size, squeeze=False, sharey="row")
    canvas.subplots_adjust(hspace=0.35, wspace=0.06)
    for panels, block in zip(axes, blocks, strict=True):
        n = int(block["n_samples"].iloc[0])
        panels[0].set_ylabel(ylabel.format(n=sample_count(n)))
        identity = f", identity {str(block['identity'].iloc[0])[:8]}" if len(blocks) > 1 else ""
        reference = block.loc[block["method"] == "real-data", level].dropna()
        entries: list[tuple[float, float, str, str]] = []
        for ax, backend in zip(panels, backends, strict=True):
            ax.set_title(f"{backend}{identity}")
            entries = _panel(ax, block[block["backend"] == backend], metric, tint_of)
            if len(reference):
                ax.axhline(float(reference.mean()), color=REFERENCE, linestyle=":", linewidth=1.4, label=level_name)
                entries.append((ax.get_xlim()[1], float(reference.mean()), level_name, REFERENCE))
        if log:
            log_axis(panels[0])
        margin_labels(panels[-1], entries)
        _name_others(panels, {text for _, _, text, _ in entries})
    return canvas


def _name_others(panels: Sequence[Axes], named: set[str]) -> None:
    """A legend in each panel of the curves that are not named beside the last one."""
    for ax in panels[:-1]:
        others = [
            line for line in ax.lines if not str(line.get_label()).startswith("_") and line.get_label() not in named
        ]
        if others:
            ax.legend(
                handles=others, loc="best", fontsize=7, frameon=True, title="on this backend only", title_fontsize=7
            )


def _panel(ax: Axes, rows: pd.DataFrame, metric: str, tint_of: dict[str, str]) -> list[tuple[float, float, str, str]]:
    """Draw the curves of one backend; returns where each ends, its label and its colour, for the margin."""
    rows = rows[(rows["steps"] > 0) & rows[metric].notna()]
    steps = sorted({int(value) for value in rows["steps"]}) or [1]
    ax.set_xscale("log", base=2)
    ax.set_xlim(steps[0] / 1.25, steps[-1] * 1.25)
    ax.xaxis.set_major_locator(FixedLocator(steps))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(plain))
    ax.set_xlabel("sampling steps (logarithmic)")
    entries = []
    for label, points in rows.groupby("series", sort=False):
        points = points.sort_values("steps")
        x, y = points["steps"].to_numpy(float), points[metric].to_numpy(float)
        tint = tint_of[str(label)]
        ax.plot(x, y, "o-", color=tint, label=str(label), markersize=4)
        _spread(ax, x, points, metric, tint)
        # A line to a lone point in the left half would cross the panel and look like a curve.
        crosses = len(x) == 1 and x[0] ** 2 < steps[0] * steps[-1]
        entries.append((ax.get_xlim()[1] if crosses else x[-1], y[-1], str(label), tint))
    return entries


def _spread(ax: Axes, x: np.ndarray, points: pd.DataFrame, metric: str, tint: str) -> None:
    """Bars of one standard deviation over seeds, where there are several."""
    y, sd = points[metric].to_numpy(float), points[f"{metric}_sd"].to_numpy(float)
    known = ~np.isnan(sd)
    if known.any():
        bars = np.minimum(sd, 0.99 * y)[known]  # they stay above zero on a logarithmic axis
        ax.errorbar(x[known], y[known], bars, fmt="none", ecolor=tint, elinewidth=0.9, capsize=2)


def compute_figure(means: pd.DataFrame, folder: Path) -> dict[str, Figure]:
    """FID against the network passes of training, a panel for each step count, as `compute`; no students, no figure."""
    means = means[~is_ablation(means)]
    tint_of = tints(means)
    students = means[~means["method"].isin(["teacher", "real-data"]) & (means["train_passes"] > 0)]
    panels: list[tuple[Any, pd.DataFrame]] = list(students.groupby([*ALIKE, "steps"], sort=False))
    if not panels:
        return {}
    panels.sort(key=lambda panel: -panel[0][-1])
    teachers = plain_teachers(means)
    teachers = teachers[matched_guidance(teachers).isin(matched_guidance(students))]
    teachers = teachers[teachers["steps"].isin(students["steps"])]
    lines = dict(list(teachers.groupby([*ALIKE, "steps"])))
    n_rows = math.ceil(len(panels) / 2)
    canvas, axes = plt.subplots(n_rows, 2, figsize=(8.4, 3.1 * n_rows), squeeze=False, sharex=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (key, rows) in zip(axes.flat, panels, strict=False):
        identity = f", identity {key[1][:8]}" if means["identity"].nunique() > 1 else ""
        ax.set_title(f"k = {key[-1]}{identity}")
        for row in rows.to_dict("records"):
            tint = tint_of[row["series"]]
            style = line(row["backend"]) | {"linestyle": "", "color": tint, "markersize": 6}
            ax.plot(row["train_passes"], row["fid"], **style)
            _spread(ax, np.array([row["train_passes"]]), pd.DataFrame([row]), "fid", tint)
        for row in lines.get(key, means[:0]).to_dict("records"):
            style = {"color": tint_of[row["series"]], "linestyle": line(row["backend"])["linestyle"]}
            ax.axhline(row["fid"], linewidth=0.9, **style)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        log_axis(ax)
        ax.set_ylabel(f"FID-{sample_count(int(rows['n_samples'].iloc[0]))} (lower is better)")
        ax.xaxis.set_tick_params(labelbottom=True)
    for ax in axes[-1]:
        ax.set_xlabel("network passes of one image in training (logarithmic)")
    canvas.tight_layout()
    canvas.legend(handles=_keys(students, teachers, tint_of), loc="center left", bbox_to_anchor=(1, 0.5))
    caption = (
        "FID against the network passes of one image in training, both axes logarithmic: a panel for each number of "
        "sampling steps, a point for each student (colour: method; marker: backend). A forward pass counts one and a "
        "backward pass two; a chain of students counts all its stages, and pairs that the teacher made count; one "
        "student that serves several step counts stands with all its passes in each panel; the teacher's training is "
        "not counted. Horizontal lines: the teacher's ancestral sampling with as many steps. Lower left is better."
    )
    if text_to_image(means).any():
        caption += " Each guidance weight w has a shade of its own; the teacher's weights are those of the students."
    return {"compute": Figure(save(canvas, folder, "compute"), "FID against training compute", caption)}


def _keys(students: pd.DataFrame, teachers: pd.DataFrame, tint_of: dict[str, str]) -> list[Line2D]:
    """The legend: methods by colour, backends by marker, the teacher's lines."""
    names = [str(name) for name in dict.fromkeys(students["series"])]
    keys = [Line2D([], [], color=tint_of[name], marker="o", linestyle="", label=name) for name in names]
    for name in dict.fromkeys(students["backend"]):
        keys.append(Line2D([], [], color=REFERENCE, label=name, **line(name)))
    shown = teachers.assign(guided=text_to_image(teachers)).drop_duplicates("series")
    for row in shown.to_dict("records"):
        weight = f", w = {row['guidance']:g}" if row["guided"] else ""
        label = f"teacher{weight}, as many steps"
        keys.append(Line2D([], [], color=tint_of[row["series"]], linewidth=0.9, label=label))
    return keys
