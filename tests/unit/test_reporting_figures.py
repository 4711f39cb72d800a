"""Figures draw the numbers they are given; the report needs nothing beside it."""

import base64
import io
import itertools
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Text

from harness.config import load_profile
from harness.datasets import ImageSet
from harness.errors import UserError
from harness.reporting.ablation_figures import guidance_figure, variants_figure
from harness.reporting.claims import Claim, write_claims
from harness.reporting.evaluation_figures import selection_figure
from harness.reporting.figures import against_steps, compute_figure, write_figures
from harness.reporting.grids import by_class, tile
from harness.reporting.records import frame, load_records, over_seeds
from harness.reporting.report import teacher_over_floor, teacher_ratios, write_report
from harness.reporting.training_curves import instant_loss, training_curves
from tests.unit.test_reporting_tables import floor, record, save

STUDENT = "moment-matching/alternating"


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def runs(folder):
    teacher = [record(steps=k, fid=16.0 / k, backend=b) for k in (1, 2, 64) for b in ("torch", "jax")]
    students = [record(STUDENT, steps=k, fid=4.0 / k) for k in (1, 2)]
    paths = save(folder, *teacher, *students, floor(fid=0.125))
    rng = np.random.default_rng(0)
    for path in paths[:-1]:
        images = rng.integers(0, 256, (40, 1, 8, 8)).astype(np.uint8)
        np.savez(
            str(path).replace("metrics", "samples").replace(".json", ".npz"), images=images, labels=np.arange(40) % 10
        )
    return paths


def write_log(path, losses, turn="denoise", network="model"):
    lines = [
        {
            "update": 2 * i,
            "turn": turn,
            "loss": x,
            "mean_loss": x,
            "learning_rate": 1e-3,
            "gradient_norm": {network: 3 * abs(x)},
        }
        for i, x in enumerate(losses)
    ]
    path.with_name("train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def curves(ax):
    return {line.get_label(): line.get_xydata().tolist() for line in ax.lines if not line.get_label().startswith("_")}


def test_curves_against_steps_are_the_records_of_a_backend(tmp_path):
    paths = runs(tmp_path) + save(tmp_path, record(STUDENT, fid=7.0, variant="ddim"), record(guidance=1.0, fid=7.0))
    means = over_seeds(frame(load_records(paths)))
    torch, jax = against_steps(means, "fid", "fid", "floor", "FID-{n}").axes
    assert (torch.get_title(), jax.get_title()) == ("torch", "jax")
    expected = {"floor": [[0.0, 0.125], [1.0, 0.125]], "Teacher": [[1.0, 16.0], [2.0, 8.0], [64.0, 0.25]]}
    assert curves(jax) == expected
    assert curves(torch) == expected | {"Moment matching, alternating": [[1.0, 4.0], [2.0, 2.0]]}
    assert torch.get_ylabel() == "FID-10k"
    assert {"Teacher", "floor"} <= {text.get_text() for text in jax.texts}


def test_the_spread_over_seeds_is_drawn(tmp_path):
    students = [record(STUDENT, fid=fid, seed=seed) for seed, fid in enumerate((1.0, 2.0, 3.0))]
    means = over_seeds(frame(load_records(save(tmp_path, *students, record(STUDENT, steps=2)))))
    [ax] = against_steps(means, "fid", "fid", "floor", "FID-{n}").axes
    [bars] = ax.containers
    [[low, high]] = bars.lines[2][0].get_segments()
    assert (low.tolist(), high.tolist()) == ([1.0, 1.0], [1.0, 3.0])


def test_labels_in_the_margin_do_not_overlap(tmp_path):
    names = ["teacher", "dmd2", "progressive", "consistency-training", "diff-instruct", "new"]
    contents = [record(name, fid=1.0 + i / 1000) for i, name in enumerate(names)] + [record("far", fid=100.0)]
    means = over_seeds(frame(load_records(save(tmp_path, *contents))))
    canvas = against_steps(means, "fid", "fid", "floor", "FID-{n}")
    canvas.canvas.draw()
    # Text's own extent: an annotation's includes its leader line
    boxes = sorted(tuple(Text.get_window_extent(text).intervaly) for text in canvas.axes[-1].texts)
    assert len(boxes) == len(names) + 1
    assert all(below[1] <= above[0] + 1 for below, above in itertools.pairwise(boxes))


def test_the_compute_figure_is_a_point_for_each_student_and_a_line_for_its_teacher(tmp_path, monkeypatch):
    students = [record("dmd2", fid=2.0, train_passes=500), record("progressive", fid=3.0, train_passes=7000)]
    students += [record("dmd2", fid=1.0, steps=8, train_passes=600, backend="jax")]
    contents = [*students, record(fid=9.0), record(fid=4.0, sampler="ddim"), record("dmd2", variant="other", fid=8.0)]
    kept = []
    monkeypatch.setattr("harness.reporting.figures.save", lambda canvas, *_: kept.append(canvas) or tmp_path)
    compute_figure(over_seeds(frame(load_records(save(tmp_path, *contents)))), tmp_path)
    drawn = {
        ax.get_title(): [line.get_xydata().tolist() for line in ax.lines] for ax in kept[0].axes if ax.get_visible()
    }
    assert drawn == {"k = 8": [[[600.0, 1.0]]], "k = 1": [[[500.0, 2.0]], [[7000.0, 3.0]], [[0.0, 9.0], [1.0, 9.0]]]}


def test_the_instant_loss_is_the_students_log_with_its_running_mean(tmp_path, monkeypatch):
    [path] = save(tmp_path, record("moment-matching/instant"))
    losses = np.exp(-np.arange(64) / 10) - 0.04
    write_log(path, losses.tolist(), "student", "student")
    kept = []
    monkeypatch.setattr("harness.reporting.training_curves.save", lambda canvas, *_: kept.append(canvas) or path)
    assert set(instant_loss(load_records([path]), tmp_path)) == {"instant-loss"}
    [ax] = kept[0].axes
    dots, mean, _ = ax.lines
    np.testing.assert_array_equal(dots.get_xydata(), np.stack([2.0 * np.arange(64), losses], axis=1))
    np.testing.assert_allclose(mean.get_ydata(), [losses[i : i + 4].mean() for i in range(61)])
    np.testing.assert_array_equal(mean.get_xdata(), 2.0 * np.arange(2, 63))
    assert ax.get_yscale() == "symlog"
    threshold = ax.yaxis.get_transform().linthresh
    ticks = ax.get_yticks()
    assert threshold / 2.5 <= np.median(np.abs(losses[-6:])) <= threshold, "as far as the last values scatter"
    assert (np.abs(ticks[ticks != 0]) >= threshold).all()
    assert len(ticks) >= 4
    assert instant_loss(load_records(save(tmp_path, record(STUDENT))), tmp_path) == {}


def test_training_curves_are_the_log(tmp_path, monkeypatch):
    [path] = save(tmp_path, record(STUDENT))
    losses = np.random.default_rng(1).normal(size=400)
    write_log(path, losses.tolist(), "student", "student")
    kept = []
    monkeypatch.setattr("harness.reporting.training_curves.save", lambda canvas, *_: kept.append(canvas) or path)
    figures = training_curves(load_records([path]), tmp_path)
    loss, norm, rate = kept[0].axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), np.stack([2.0 * np.arange(400), losses], axis=1))
    np.testing.assert_allclose(loss.lines[1].get_ydata(), [losses[i : i + 10].mean() for i in range(391)])
    np.testing.assert_array_equal(norm.lines[0].get_ydata(), 3 * abs(losses))
    np.testing.assert_array_equal(rate.lines[0].get_ydata(), np.full(400, 1e-3))
    assert loss.get_yscale() == "symlog"
    assert norm.get_yscale() == "log"
    assert "no fixed sign" in figures["training-moment-matching-alternating"].caption


def test_a_damaged_log_is_one_line_naming_file_and_line(tmp_path):
    [path] = save(tmp_path, record())
    path.with_name("train.jsonl").write_text('{"update": 0, "turn": "denoise"}\n')
    with pytest.raises(UserError, match=r"train\.jsonl: line 1 lacks 'gradient_norm'"):
        training_curves(load_records([path]), tmp_path)


def test_tiles_show_each_class_in_its_row():
    labels = np.arange(30) % 3
    images = np.zeros((30, 1, 4, 4), np.uint8) + (labels * 50 + np.arange(30))[:, None, None, None].astype(np.uint8)
    picture = tile(by_class(images, labels, 2))
    assert picture.shape == (14, 9, 3)
    assert [[picture[5 * r + 1, 5 * c + 1, 0] for c in range(2)] for r in range(3)] == [[0, 3], [51, 54], [102, 105]]
    assert (picture[4] == 255).all()


def test_figures_and_report_are_whole_and_self_contained(tmp_path):
    paths = runs(tmp_path)
    write_log(paths[0], np.linspace(2, 1, 30).tolist())
    images = np.linspace(-1, 1, 30 * 64, dtype=np.float32).reshape(30, 1, 8, 8)
    ImageSet("digits", "train", images, np.arange(30) % 10, 10).save(tmp_path / "train.npz")
    figures = write_figures(paths, tmp_path, tmp_path / "train.npz")
    assert {"fid", "memorisation", "compute", "comparison-torch", "samples-teacher", "training-teacher"} <= set(figures)
    for figure in figures.values():
        picture = imread(figure.path)
        assert min(picture.shape[:2]) > 200
        assert picture[..., :3].std() > 0.05
        assert figure.path.with_suffix(".svg").read_text().endswith("</svg>\n")
    write_claims([Claim("C1", "a claim", "<evidence>", "2.5", "1 to 4", "does not hold")], tmp_path)
    write_report(paths, tmp_path, tmp_path / "report.html", claims=tmp_path / "claims.csv")
    page = (tmp_path / "report.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]{0,30})""", page)
    assert len(sources) == len(figures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\(", page)
    embedded = re.search(r"base64,([^\"]+)\"", page)[1]
    assert imread(io.BytesIO(base64.b64decode(embedded))).shape == imread(figures["fid"].path).shape
    assert '<span class="badge does-not-hold">does not hold</span>' in page
    assert page.index("a claim") < page.index("<h2>Results")
    for text in (
        "0.25",
        "c0ffee",
        "&lt;evidence&gt;",
        "1 does not hold",
        "2.00\N{MULTIPLICATION SIGN}",
    ):  # student over teacher, config, teacher over floor
        assert text in page


def test_the_same_records_give_the_same_bytes(tmp_path):
    paths = save(tmp_path, record(), record(STUDENT, fid=0.5), floor())
    contents = []
    for name in "ab":
        (tmp_path / name).mkdir()
        write_figures(paths, tmp_path / name)
        contents.append([(tmp_path / name / file).read_bytes() for file in ("fid.png", "fid.svg", "captions.json")])
    assert contents[0] == contents[1]


def test_absent_neighbours_leave_panels_out_and_the_caption_says_so(tmp_path):
    paths = save(tmp_path, record(), record(STUDENT, fid=0.5))
    figures = write_figures(paths, tmp_path)
    assert set(figures) == {"fid", "compute", "memorisation"}
    assert "No real-data record" in figures["memorisation"].caption
    figures = write_figures(runs(tmp_path / "runs"), tmp_path)
    assert "No real images were given" in figures["comparison-torch"].caption


def test_ratios_pair_what_was_measured_alike(tmp_path):
    paths = runs(tmp_path)
    paths += save(tmp_path, record(STUDENT, fid=1.0, identity="bbbb"), record(fid=0.1, sampler="ddim"))
    means = over_seeds(frame(load_records(paths)))
    ratios = teacher_ratios(means)
    assert dict(zip(ratios["steps"], ratios["ratio"], strict=True)) == {1: 0.25, 2: 0.25}
    assert dict(zip(*teacher_over_floor(means)[["backend", "ratio"]].to_numpy().T, strict=True)) == {
        "torch": 2,
        "jax": 2,
    }


def test_the_lowest_ratio_is_told_for_each_identity_by_itself(tmp_path):
    paths = save(tmp_path, record(fid=4.0), record(STUDENT, fid=2.0), record("dmd2", fid=1.0))
    other = {"identity": "bbbb", "n_samples": 2000}
    paths += save(tmp_path, record(fid=4.0, **other), record(STUDENT, fid=3.0, **other))
    write_figures(paths, tmp_path)
    write_report(paths, tmp_path, tmp_path / "report.html")
    tiles = re.findall(r"<b>([\d.]+).</b><span>lowest of (\d) students, (\S+)", (tmp_path / "report.html").read_text())
    assert tiles == [("0.25", "2", "FID-10k"), ("0.75", "1", "FID-2k")]


def test_every_axis_names_its_sample_count(tmp_path, monkeypatch):
    drawn = []
    for module in ("figures", "ablation_figures", "evaluation_figures"):
        monkeypatch.setattr(f"harness.reporting.{module}.save", lambda canvas, folder, name: drawn.append(canvas))
    guided = [record(guidance=w, fid=w + 1) for w in (0.5, 1.0)]
    records = [record(), *guided, record(STUDENT), record(STUDENT, variant="ddim", fid=2.0)]
    means = over_seeds(frame(load_records(save(tmp_path, *records))))
    compute_figure(means, tmp_path)
    guidance_figure(means, tmp_path)
    variants_figure(means, tmp_path)
    selected = record(STUDENT, n_samples=2048)
    selected["extra"] |= {"fid_by_update": {"4": 5.0, "8": 2.0}, "best_update": 8, "fid_last": 2.0, "fid_fresh": 4.0}
    selection_figure(load_records(save(tmp_path / "during", selected)), tmp_path)
    compute, guidance, variants, selection = (next(ax for ax in canvas.axes if ax.get_xlabel()) for canvas in drawn)
    assert compute.get_ylabel() == guidance.get_ylabel() == "FID-10k (lower is better)"
    assert guidance.get_xlabel() == "Inception Score, IS-10k (higher is better)"
    assert variants.get_xlabel() == "FID-10k"
    assert selection.get_ylabel() == "FID-2048"


def test_the_report_shows_published_numbers_apart_from_other_profiles_results(tmp_path):
    paths = save(tmp_path, record(), record(STUDENT, fid=0.5))
    write_figures(paths, tmp_path)
    write_report(paths, tmp_path, tmp_path / "report.html", profile=load_profile("digits"))
    page = (tmp_path / "report.html").read_text()
    results, apart = page.split("<h2>Published by others</h2>")
    apart, rest = apart.split("<h2>Figures</h2>")
    assert "Salimans" not in results + rest
    assert apart.count("not comparable with the results of profile digits") == apart.count("<details>") == 7
    assert "unverified" in apart


def test_missing_figures_are_a_user_error(tmp_path):
    paths = save(tmp_path, record())
    with pytest.raises(UserError, match=r"captions\.json: the figure cannot be read"):
        write_report(paths, tmp_path, tmp_path / "report.html")
