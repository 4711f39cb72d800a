"""Figures of the ablations show the records they are given, and are left out where there are none."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from matplotlib.text import Annotation

from harness.datasets import ImageSet
from harness.diffusion import CosineClock
from harness.reporting.ablation_figures import ablation_figures, guidance_figure, transition_grids, variants_figure
from harness.reporting.implied_weighting import implied_weighting_figure, implied_weights
from harness.reporting.records import Extra, frame, load_records, over_seeds
from harness.reporting.style import use_style
from tests.unit.test_reporting_tables import floor, record, save

NEEDED = ("is_std", "kid_std", "fid_heldout", "nn_distance")
STUDENT = "moment-matching/alternating"


@pytest.fixture(autouse=True)
def _style():
    use_style()
    yield
    plt.close("all")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The canvases that would be saved."""
    canvases = []
    for module in ("ablation_figures", "implied_weighting"):
        keep = lambda canvas, folder, name: canvases.append(canvas) or tmp_path / f"{name}.png"  # noqa: E731
        monkeypatch.setattr(f"harness.reporting.{module}.save", keep)
    return canvases


def student(variant="default", steps=8, fid=0.05, distance=2.5, **changes):
    made = record(STUDENT, steps=steps, fid=fid, variant=variant, **changes)
    made["extra"]["class_distance"] = distance
    return made


def guided(w, fid, score, backend="torch"):
    """A teacher's record with the name that the workflow would give it."""
    made = record(steps=8, fid=fid, backend=backend, sampler="ddim", guidance=w, nfe=16 if w else 8)
    made["row"]["is"] = score
    return made


def save_guided(folder, *contents):
    return [path for i, content in enumerate(contents) for path in save(folder / str(i), content)]


def write_samples(path, value):
    """40 images of one class after another; those of class 9 have the brightness `value`."""
    labels = np.arange(40) % 10
    images = np.where(labels == 9, value, 0).astype(np.uint8)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    np.savez(path.with_name(path.name.replace("metrics", "samples")).with_suffix(".npz"), images=images, labels=labels)


def means(paths):
    return over_seeds(frame(load_records(paths)))


def transition_records(folder):
    real = floor()
    real["extra"]["class_distance"] = 2.875
    paths = save(folder, real, student(distance=2.5), student("unconditional", distance=1.25, recall=0.3))
    paths += save(folder, student("unconditional", steps=1), student(steps=16), student("flat"))
    for path, value in zip(paths[1:], (100, 50, 10, 10, 10), strict=True):
        write_samples(path, value)
    images = np.zeros((10, 1, 8, 8), np.float32)
    ImageSet("digits", "train", images, np.arange(10), 10).save(folder / "train.npz")
    return load_records(paths), folder / "train.npz"


def test_both_transitions_stand_beside_real_images_of_one_class(tmp_path, drawn):
    records, real = transition_records(tmp_path)
    [figure] = transition_grids(records, tmp_path, real).values()
    panels = drawn[0].axes
    titles = [ax.get_title() for ax in panels]
    assert ["class distance 2.88" in titles[0], "recall 0.800, class distance 2.50" in titles[1]] == [True, True]
    assert "recall 0.300, class distance 1.25" in titles[2]
    pictures = [ax.images[0].get_array()[..., 0] for ax in panels]
    assert [picture[0, 0] for picture in pictures] == [128, 100, 50]
    assert [(picture == value).sum() for picture, value in zip(pictures, (128, 100, 50), strict=True)] == [
        64,
        4 * 64,
        4 * 64,
    ]
    assert "Class 9" in figure.caption
    assert "k = 8, torch" in figure.caption


def test_transitions_without_real_images_or_measured_distances_say_so(tmp_path, drawn):
    records, _ = transition_records(tmp_path)
    records = [item.model_copy(update={"extra": Extra(**dict.fromkeys(NEEDED, 1.0))}) for item in records]
    [figure] = transition_grids(records, tmp_path, None).values()
    assert "No real images were given" in figure.caption
    assert [ax.get_title().split(", ")[-1] for ax in drawn[0].axes] == ["class distance not measured"] * 2


def test_guidance_is_the_teachers_with_each_weight(tmp_path, drawn):
    values = [(0.0, 0.1, 6.0), (1.0, 0.4, 7.0), (0.5, 0.2, 6.5)]
    contents = [guided(w, fid, score) for w, fid, score in values]
    contents += [guided(w, fid + 0.01, score, "jax") for w, fid, score in values]
    contents += [record(steps=8, fid=9.0), record(steps=4, fid=9.0, sampler="ddim"), floor()]  # other settings
    assert set(guidance_figure(means(save_guided(tmp_path, *contents)), tmp_path)) == {"guidance"}
    [ax] = drawn[0].axes
    torch, jax, star = (line.get_xydata().tolist() for line in ax.lines)
    assert torch == [[6.0, 0.1], [6.5, 0.2], [7.0, 0.4]]
    assert jax == [[x, y + 0.01] for x, y in torch]
    assert star == [[9.0, 0.02]]
    notes = [(text.get_text(), *text.xy) for text in ax.texts if isinstance(text, Annotation)]
    assert notes[:3] == [("w = 0", 6.0, 0.1), ("w = 0.5", 6.5, 0.2), ("w = 1", 7.0, 0.4)]
    assert ax.get_title() == "Teacher, DDIM, 8 steps"


def test_variants_stand_below_their_default(tmp_path, drawn):
    contents = [student(), student("worse", fid=0.4), student("better", fid=0.02), student("better", 4, 0.1)]
    contents += [student(steps=4, fid=0.06), student(steps=1), record("dmd", steps=1)]
    variants_figure(means(save(tmp_path, *contents)), tmp_path)
    eight, four = drawn[0].axes
    assert [label.get_text() for label in eight.get_yticklabels()] == ["default", "better", "worse"]
    assert [label.get_fontweight() for label in eight.get_yticklabels()] == ["bold", "normal", "normal"]
    dots = {tuple(bar.lines[0].get_xydata()[0]) for bar in eight.containers}
    assert dots == {(0.05, 0.0), (0.02, 1.0), (0.4, 2.0)}
    assert {tuple(bar.lines[0].get_xydata()[0]) for bar in four.containers} == {(0.06, 0.0), (0.1, 1.0)}
    assert [ax.get_title() for ax in (eight, four)] == [f"Moment matching, alternating, k = {k}" for k in (8, 4)]


def test_spread_over_seeds_is_drawn(tmp_path, drawn):
    contents = [student(fid=fid, seed=seed) for seed, fid in enumerate((0.04, 0.05, 0.06))]
    figures = variants_figure(means([*save(tmp_path, student("other")), *save_guided(tmp_path, *contents)]), tmp_path)
    [ax] = drawn[0].axes
    [bar] = [bar for bar in ax.containers if bar.lines[0].get_ydata()[0] == 0]
    [segment] = bar.lines[2][0].get_segments()
    np.testing.assert_allclose(segment[:, 0], [0.04, 0.06])
    assert "standard deviation over seeds" in figures["ablations"].caption


def test_figures_are_left_out_without_their_records(tmp_path):
    paths = save(tmp_path, record(steps=8), record(steps=4), student(), floor())
    write_samples(paths[2], 100)
    assert ablation_figures(load_records(paths), tmp_path, None) == {}


def test_the_figures_are_whole(tmp_path):
    records, real = transition_records(tmp_path)
    paths = save_guided(tmp_path / "guided", guided(0.0, 0.1, 6.0), guided(1.0, 0.4, 7.0))
    figures = ablation_figures([*records, *load_records(paths)], tmp_path, real)
    figures |= implied_weighting_figure(CosineClock(), [8], tmp_path)
    assert set(figures) == {"conditional-vs-unconditional", "guidance", "ablations", "implied-weighting"}
    for figure in figures.values():
        picture = imread(figure.path)
        assert min(picture.shape[:2]) > 200
        assert picture[..., :3].std() > 0.05
        assert figure.path.with_suffix(".svg").read_text().endswith("</svg>\n")


def test_implied_weighting_draws_the_shares_and_writes_the_weights(tmp_path, drawn):
    clock = CosineClock(shift=1.0)
    implied_weighting_figure(clock, [8, 32], tmp_path)
    table = pd.read_csv(tmp_path / "implied-weighting.csv")
    assert len(table) == 2 * 2 * (8 + 32)
    weights = implied_weights(clock, "ddim", 32, "v")
    rows = table[(table["steps"] == 32) & (table["sampler"] == "ddim") & (table["prediction"] == "v")]
    np.testing.assert_allclose(rows["weight_in_sample"], weights.sample, rtol=1e-12)
    np.testing.assert_allclose(rows["weight_in_last_latent"], weights.latent, rtol=1e-12)
    np.testing.assert_allclose(rows["logsnr"], clock(np.arange(32, 0, -1) / 32).logsnr, rtol=1e-12)
    v_panel, x_panel = drawn[0].axes[2:]
    curves = {line.get_label(): line.get_ydata() for line in v_panel.lines}
    np.testing.assert_allclose(curves["DDIM"], weights.sample / weights.sample.sum())
    latent = implied_weights(clock, "ancestral", 32, "x").latent[:-1]
    np.testing.assert_allclose(x_panel.lines[0].get_ydata(), latent / latent.sum())
