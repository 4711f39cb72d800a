"""Figures of text-to-image profiles draw the numbers and images that they are given, guidance weights apart."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Annotation

from harness.datasets import ImageSet, shapes
from harness.errors import UserError
from harness.reporting.ablation_figures import ablation_figures
from harness.reporting.caption_figures import attributes_figure
from harness.reporting.evaluation_figures import fid_against_n_figure
from harness.reporting.figures import against_steps, compute_figure, write_figures
from harness.reporting.prompt_gallery import chosen_captions, prompt_galleries
from harness.reporting.records import frame, load_records, over_seeds
from harness.reporting.style import COLOURS, tints, use_style
from harness.reporting.training_curves import instant_curves
from tests.unit.test_reporting_captions import captioned, loaded, real
from tests.unit.test_reporting_figures import curves, write_log
from tests.unit.test_reporting_tables import save

STUDENT = "moment-matching/alternating"
ONE = ["shape", "colour", "size", "position", "background"]


@pytest.fixture(autouse=True)
def _style():
    use_style()
    yield
    plt.close("all")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The canvases that would be saved."""
    canvases = []
    for module in ("figures", "caption_figures", "prompt_gallery", "ablation_figures", "evaluation_figures"):
        keep = lambda canvas, folder, name: canvases.append(canvas) or tmp_path / f"{name}.png"  # noqa: E731
        monkeypatch.setattr(f"harness.reporting.{module}.save", keep)
    return canvases


def test_curves_never_mix_guidance_weights(tmp_path, drawn):
    contents = [captioned(steps=k, fid=k + w, clip=k - w, w=w) for k in (8, 32) for w in (0.0, 1.0)]
    contents += [captioned(STUDENT, steps=k, fid=2 * k + w, w=w) for k in (4, 8) for w in (1.0, 2.0)]
    for content in contents:
        content["extra"] |= {"fid_by_n": {"100": 2.0, "200": 1.0}, "fid_infinity": 1.0}
    records = loaded(tmp_path, *contents, real())
    means = over_seeds(frame(records))
    [ax] = against_steps(means, "fid", "fid", "floor", "FID-{n}").axes
    assert {name: y for name, y in curves(ax).items() if name != "floor"} == {
        "Teacher, w = 0": [[8.0, 8.0], [32.0, 32.0]],
        "Teacher, w = 1": [[8.0, 9.0], [32.0, 33.0]],
        "Moment matching, alternating, w = 1": [[4.0, 9.0], [8.0, 17.0]],
        "Moment matching, alternating, w = 2": [[4.0, 10.0], [8.0, 18.0]],
    }
    figure = compute_figure(means, tmp_path)["compute"]
    [eight, _] = drawn[0].axes
    lines = {tuple(line.get_ydata()) for line in eight.lines}
    assert lines == {(17.0,), (18.0,), (9.0, 9.0)}  # the teacher's own weight that no student has is not drawn
    named = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert named == [
        "Moment matching, alternating, w = 1",
        "Moment matching, alternating, w = 2",
        "torch",
        "teacher, w = 1, as many steps",
    ]
    assert "guidance weight w" in figure.caption
    fid_against_n_figure(records, tmp_path)
    panel = next(ax for ax in drawn[1].axes if ax.get_title() == "k = 8")
    assert len(panel.lines) == 2 * 4
    assert len({line.get_color() for line in panel.lines}) == 4


def test_the_leader_of_a_lone_point_reaches_it_unless_it_would_cross_the_panel(tmp_path):
    contents = [captioned(steps=1, w=1.0), captioned(w=1.0), captioned("dmd", steps=1, w=1.0), captioned("dmd2", w=1.0)]
    [ax] = against_steps(over_seeds(frame(loaded(tmp_path, *contents, real()))), "fid", "fid", "floor", "FID").axes
    ends = {text.get_text(): text.xy[0] for text in ax.texts if isinstance(text, Annotation)}
    assert ends["DMD2, w = 1"] == ends["Teacher, w = 1"] == 8
    assert ends["DMD, w = 1"] == ax.get_xlim()[1] > 8


def test_curves_of_one_backend_alone_are_named_in_its_panel(tmp_path):
    contents = [captioned(backend=b, w=1.0) for b in ("torch", "jax")]
    contents += [captioned("dmd2", w=1.0), captioned(STUDENT, backend="jax", w=1.0), real()]
    torch, jax = against_steps(over_seeds(frame(loaded(tmp_path, *contents))), "fid", "fid", "floor", "FID").axes
    assert [text.get_text() for text in torch.get_legend().get_texts()] == ["DMD2, w = 1"]
    assert jax.get_legend() is None
    assert {"Teacher, w = 1", "Moment matching, alternating, w = 1"} <= {text.get_text() for text in jax.texts}


def test_a_students_full_colour_is_that_of_the_common_weight(tmp_path):
    contents = [captioned(w=w) for w in (0.0, 1.0, 2.0)] + [captioned(STUDENT, w=w) for w in (0.0, 1.0)]
    of = tints(frame(loaded(tmp_path, *contents, captioned("dmd2", w=1.0))))
    assert of["Teacher, w = 0"] == COLOURS["teacher"]
    assert of["Moment matching, alternating, w = 1"] == COLOURS[STUDENT]
    assert of["DMD2, w = 1"] == COLOURS["dmd2"]
    assert len(set(of.values())) == len(of) == 6


def test_variants_stand_beside_defaults_of_their_guidance(tmp_path, drawn):
    contents = [captioned(STUDENT, w=w, fid=1 + w) for w in (0.0, 1.0)]
    contents += [captioned(STUDENT, w=1.0, fid=9.0, variant="flat"), captioned(), captioned(w=1.0)]
    assert set(ablation_figures(loaded(tmp_path, *contents), tmp_path, None)) == {"ablations"}
    [ax] = drawn[0].axes
    assert {bar.lines[0].get_xdata()[0] for bar in ax.containers} == {2.0, 9.0}
    assert ax.get_title() == "Moment matching, alternating, k = 8, w = 1"


def test_training_curves_name_the_guidance(tmp_path):
    for student in ("k8", "k8-w1", "all-w0.5"):
        [path] = save(tmp_path, captioned("moment-matching/instant", w=1.0))
        target = tmp_path / student / "seed0"
        target.mkdir(parents=True)
        write_log(path.rename(target / path.name), [1.0] * 4, "student", "student")
    names = [name.removesuffix(", torch, seed 0") for path in tmp_path.rglob("metrics*") for name in one_curve(path)]
    assert sorted(names) == ["all, w = 0.5", "k = 8", "k = 8, w = 1"]


def one_curve(path):
    return instant_curves(load_records([path]))


def with_attributes(made, one, two=None):
    made["extra"]["attributes"] = {"one_object": dict.fromkeys(ONE, one) | {"joint": one / 2}}
    if two is not None:
        made["extra"]["attributes"]["two_objects"] = {"shape": two, "shape2": two, "joint": two / 2}
    return made


def test_attributes_are_the_shares_at_the_largest_common_step_count(tmp_path, drawn):
    contents = [with_attributes(captioned(STUDENT, w=1.0, seed=i), one, one) for i, one in enumerate((0.6, 0.8))]
    contents += [with_attributes(captioned(STUDENT, w=1.0, steps=16), 0.1, 0.1)]
    contents += [
        with_attributes(captioned("dmd2", w=1.0), 0.5, 0.3),
        with_attributes(captioned("dmd", steps=1), 0.2, 0.1),
    ]
    contents += [with_attributes(captioned("progressive", steps=k), 0.4, 0.4) for k in (1, 8)]
    contents += [
        with_attributes(captioned(steps=k, w=w), k / 100 + w / 10, 0.9) for k in (4, 8, 32) for w in (0.0, 1.0)
    ]
    attributes_figure(loaded(tmp_path, *contents, with_attributes(real(), 1.0, 1.0)), tmp_path)
    one, two = drawn[0].axes
    expected = {
        "Real images": 1.0,
        "Teacher, w = 0, 32 steps": 0.32,
        "Teacher, w = 1, 32 steps": 0.42,
        "Teacher, w = 0, 8 steps": 0.08,
        "Teacher, w = 1, 8 steps": 0.18,
        "Moment matching, alternating, w = 1, 8 steps": 0.7,
        "DMD, w = 0, 1 step": 0.2,
        "DMD2, w = 1, 8 steps": 0.5,
        "Progressive, w = 0, 8 steps": 0.4,
    }
    rows = [label.get_text() for label in one.get_yticklabels()]
    shown = one.images[0].get_array()
    assert dict(zip(rows, shown[:, 0], strict=True)) == pytest.approx(expected)
    np.testing.assert_allclose(shown[:, -1], np.array(list(expected.values())) / 2)
    assert [label.get_text() for label in one.get_xticklabels()] == [*ONE, "joint"]
    assert [label.get_text() for label in two.get_xticklabels()] == ["shape", "shape2", "joint"]
    assert two.images[0].get_array()[5].tolist() == pytest.approx([0.7, 0.7, 0.35])
    assert [patch.get_x() for patch in one.patches] == [4.5], "joint is framed"


def held_out(folder, labels, name="shapes"):
    """Image i is all i + 1; its caption is `caption i`."""
    images = np.broadcast_to(np.arange(1, len(labels) + 1, dtype=np.uint8)[:, None, None, None], (len(labels), 3, 4, 4))
    captions = np.array([f"caption {i}" for i in range(len(labels))], np.dtypes.StringDType())
    data = ImageSet(name, "heldout", images.copy(), np.array(labels), len(shapes.SCENES), captions)
    data.save(folder / "heldout.npz")
    return data


SINGLES, PAIRS = np.flatnonzero(shapes.SINGLE), np.flatnonzero(~shapes.SINGLE)
LABELS = [*PAIRS[:2], *SINGLES[:3], PAIRS[2], *SINGLES[3:9], *PAIRS[3:9]]


def gallery(folder, *brightness, labels=LABELS, heldout=LABELS):
    """The galleries of records whose images are all of one brightness."""
    data = held_out(folder, heldout)
    paths = save(folder, *(content for content, _ in brightness))
    for path, (_, value) in zip(paths, brightness, strict=True):
        images = np.full((len(labels), 3, 4, 4), value, np.uint8)
        samples = path.with_name(path.name.replace("metrics", "samples")).with_suffix(".npz")
        np.savez(samples, images=images, labels=np.array(labels))
    return data, prompt_galleries(load_records(paths), folder, folder / "heldout.npz")


def test_the_gallery_shows_real_images_the_teacher_and_every_student_for_one_caption_a_row(tmp_path, drawn):
    teachers = [(captioned(steps=32, w=w, clip=clip), int(clip)) for w, clip in ((0.0, 80), (1.0, 90), (4.0, 85))]
    others = [(captioned(clip=99.0), 1), (captioned(steps=32, sampler="ddim", clip=99.0), 2)]
    students = [(captioned(STUDENT, w=1.0, steps=k), 100 + k) for k in (1, 8)]
    students += [(captioned("dmd2", w=1.0, steps=1), 150), (captioned("dmd2", w=1.0, variant="flat", steps=1), 3)]
    _, figures = gallery(tmp_path, *teachers, *others, *students)
    assert set(figures) == {"prompts-torch"}
    [ax] = drawn[0].axes
    pictures: dict[int, list[int]] = {}
    for image in sorted(ax.images, key=lambda image: image.get_extent()[0]):
        pictures.setdefault(int(image.get_extent()[3]), []).append(int(image.get_array()[0, 0, 0]))
    chosen = [2, 3, 4, 6, 0, 1, 5, 12]  # four of one object, four of two
    assert pictures == {y: [i + 1, 80, 90, 108, 101, 150] for y, i in enumerate(chosen)}
    texts = [text.get_text().replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ") for text in ax.texts]
    assert [text for text in texts if text.startswith("caption")] == [f"caption {i}" for i in chosen]
    assert {"w = 0", "w = 1", "Teacher, 32 steps", "DMD2, w = 1", "Moment matching, alternating, w = 1"} <= set(texts)
    assert "not selected" not in texts
    assert "neither captions nor images are selected" in figures["prompts-torch"].caption


def test_other_captioned_data_show_their_first_captions(tmp_path):
    data = held_out(tmp_path, [PAIRS[0], SINGLES[0], SINGLES[1]], name="coco")
    assert chosen_captions(data, 2).tolist() == [0, 1]
    assert chosen_captions(data, 100).tolist() == [0, 1, 2]


def test_samples_of_other_captions_are_a_user_error(tmp_path, drawn):
    with pytest.raises(UserError, match=r"samples-ancestral-k8\.npz: drawn for other captions than those of shapes"):
        gallery(tmp_path, (captioned(), 1), labels=LABELS[::-1])


def test_without_captions_or_samples_there_is_no_gallery(tmp_path):
    records = loaded(tmp_path, captioned())
    held_out(tmp_path, LABELS)
    assert prompt_galleries(records, tmp_path, tmp_path / "heldout.npz") == {}
    assert prompt_galleries(records, tmp_path, None) == {}


def test_a_captioned_profile_has_figures_of_captions_in_place_of_those_of_classes(tmp_path):
    teacher = [with_attributes(captioned(steps=k, w=w, fid=k + w), 0.5, 0.5) for k in (8, 32) for w in (0.0, 1.0)]
    contents = [(content, 100) for content in [*teacher, with_attributes(captioned(STUDENT, w=1.0), 0.6, 0.6)]]
    gallery(tmp_path, *contents, (captioned(STUDENT, w=1.0, variant="unconditional"), 90))
    paths = [*tmp_path.rglob("metrics*.json"), *save(tmp_path, real())]
    ImageSet("shapes", "train", np.zeros((2, 3, 4, 4), np.uint8), np.array([0, 1]), 2).save(tmp_path / "train.npz")
    figures = write_figures(paths, tmp_path, tmp_path / "train.npz", heldout=tmp_path / "heldout.npz")
    assert set(figures) == {
        "fid", "compute", "memorisation", "clip", "guidance", "attributes", "prompts-torch", "ablations",
    }  # fmt: skip
    for figure in figures.values():
        picture = imread(figure.path)
        assert min(picture.shape[:2]) > 150
        assert picture[..., :3].std() > 0.05
