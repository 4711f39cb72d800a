"""From captions to records: a text-to-image profile's verbs on a few shapes, and one image of a prompt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.addresses import TEACHER, RunAddress
from harness.checkpoint import load_checkpoint
from harness.datasets import ImageSet
from harness.datasets.archive import load_arrays
from harness.datasets.shapes import HELD_OUT, SINGLE, draw
from harness.errors import UserError
from harness.prompts import CAPTIONED, Captions, prompts
from harness.text_encoders.table import TextTable
from harness.verbs import distill, evaluate, pairs, reference, sample, sample_prompt, teacher, text
from harness.verbs.sample import draw as draw_from
from harness.workspace import Workspace
from tests.profiles import LENGTH, MATCHING, OPTIMISER, write_profile

CHANGES: dict[str, Any] = {
    "data": {"name": "shapes"},
    "text": {"encoder": "shapes-clip"},
    "extractor": "shapes-cnn",
    "network": {"patch": 8, "width": 16, "depth": 1, "heads": 2, "positions": "sincos"},
    "pairs": {"count": 30, "steps": 2},
    "teacher.samplers": {"ancestral": [2]},
    "teacher.guidance": {"weights": [2.0], "steps": [2]},
    "methods": [
        {"id": MATCHING, "steps": [2], "guidance": [0.0, 2.0], **LENGTH, "optimiser": OPTIMISER},
        {"id": "dmd", "steps": [1], "guidance": [2.0], **LENGTH, "optimiser": OPTIMISER},
    ],
    "evaluation": {"n_samples": 50, "batch": 16, "clip": "shapes-clip"},
}
TEACHER_RUN = RunAddress("torch", TEACHER, "default", TEACHER, 0)
STUDENT_RUN = RunAddress("torch", MATCHING, "default", "k2", 0, 2.0)
TRAIN, HELDOUT = 30, 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which a teacher and its guided student are trained, sampled and scored."""
    folder = tmp_path_factory.mktemp("shapes")
    workspace = Workspace(write_profile(folder / "mine.yaml", CHANGES), folder)
    workspace.data("train").parent.mkdir(parents=True)
    draw("test", TRAIN, ~HELD_OUT).save(workspace.data("train"))
    draw("test-heldout", HELDOUT, HELD_OUT).save(workspace.data("heldout"))
    text.run(workspace)
    reference.run(workspace)
    teacher.run(workspace, "torch", 0)
    distill.run(workspace, "torch", MATCHING, "default", "k2", 0, guidance=2.0)
    for run in (TEACHER_RUN, STUDENT_RUN):
        named = run.backend, run.method, run.variant, run.student, run.seed
        sample.run(workspace, *named, guidance=run.guidance)
        evaluate.run(workspace, *named, guidance=run.guidance)
    return workspace


def record(workspace: Workspace, run: RunAddress, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workspace.run(run) / f"metrics-{name}.json").read_text())
    return content


def test_a_guided_student_has_its_own_folder_and_says_what_it_was_made_from(made: Workspace) -> None:
    assert made.run(STUDENT_RUN).relative_to(made.root) == Path("torch/moment-matching-alternating/default/k2-w2/seed0")
    _, of_student = load_checkpoint(made.checkpoint(STUDENT_RUN))
    _, of_teacher = load_checkpoint(made.checkpoint(TEACHER_RUN))
    table = TextTable.load(made.text("train"))
    for manifest in (of_student, of_teacher):
        assert manifest["text"] == table.digest
        assert manifest["text_encoder"] == table.identity["encoder_weights"]
        assert manifest["network"]["text_width"] == 64
        assert manifest["config"]["text"] == "shapes-clip"
    assert of_student["config"]["student"]["guidance"] == 2.0
    unguided = made.run_config(RunAddress("torch", MATCHING, "default", "k2", 0))
    assert "guidance" not in unguided["student"]
    summary = json.loads((made.run(STUDENT_RUN) / "train.json").read_text())
    # of each kind of update: two networks forward, one forward and backward, and the teacher once more for guidance
    assert summary["train_passes"] == LENGTH["updates"] * LENGTH["batch"] * (2 + 3 + 1)


def test_images_are_drawn_for_the_captions_of_held_out_images(made: Workspace) -> None:
    heldout = ImageSet.load(made.data("heldout"))
    given = prompts(made, 1)
    rows = np.arange(50) % HELDOUT
    np.testing.assert_array_equal(given.rows(0, 50), rows)
    images, labels = load_arrays(made.run(STUDENT_RUN) / "samples-ancestral-k2.npz", "images", "labels")
    np.testing.assert_array_equal(labels, heldout.labels[rows])
    tokens, mask = given.condition(38, 4)
    table = TextTable.load(made.text("heldout"))
    expected = table.rows(np.array([38, 39, 0, 1]))
    np.testing.assert_array_equal(tokens, expected.tokens)
    np.testing.assert_array_equal(mask, expected.mask)
    assert images.shape == (50, 3, 16, 16)


def test_images_do_not_depend_on_the_batch(made: Workspace, tmp_path: Path) -> None:
    weights, manifest = load_checkpoint(made.checkpoint(STUDENT_RUN))
    spec, (setting,) = made.spec((3, 16, 16), manifest["network"]["num_classes"], 64), made.settings(STUDENT_RUN)
    (images,) = load_arrays(made.run(STUDENT_RUN) / "samples-ancestral-k2.npz", "images")
    smaller = Workspace(write_profile(tmp_path / "mine.yaml", CHANGES | {"evaluation.batch": 7}), made.root.parent)
    again, _ = draw_from(smaller, STUDENT_RUN, setting, spec, weights, prompts(made, 1), 50)
    assert np.abs(again.astype(int) - images).max() <= 1  # of 255: another batch is rounded otherwise


def test_records_hold_the_captions_scores_and_what_they_depend_on(made: Workspace) -> None:
    student, plain = record(made, STUDENT_RUN, "ancestral-k2"), record(made, TEACHER_RUN, "ancestral-k2")
    guided = record(made, TEACHER_RUN, "ancestral-w2-k2")
    assert [r["row"]["guidance"] for r in (student, plain, guided)] == [2.0, 0.0, 2.0]
    assert [r["row"]["nfe"] for r in (student, plain, guided)] == [2, 2, 4], "a student has the guidance in it"
    for content in (student, plain, guided):
        assert content["row"]["identity"] == student["row"]["identity"]
        assert -100 <= content["row"]["clip"] <= 100
        assert content["extra"]["clip_se"] > 0
        assert content["extra"]["fid_heldout"] is None
        assert content["identity"]["label_policy"] == CAPTIONED
        assert content["identity"]["data"].endswith("test-heldout")
        assert content["identity"]["clip_extractor"] == "shapes-clip"
        assert set(content["extra"]["attributes"]) == {"one_object", "two_objects"}


def test_real_images_have_the_best_scores(made: Workspace) -> None:
    real = json.loads(made.floor.read_text())
    heldout = ImageSet.load(made.data("heldout"))
    assert real["row"]["clip"] > 85
    assert real["row"]["attribute_accuracy"] > 0.95
    assert SINGLE[heldout.labels].any()
    assert real["row"]["fid"] < record(made, TEACHER_RUN, "ancestral-k2")["row"]["fid"]
    assert real["row"]["identity"] == record(made, STUDENT_RUN, "ancestral-k2")["row"]["identity"]


def test_pairs_are_of_the_guided_teacher_and_of_training_captions(made: Workspace) -> None:
    pairs.run(made, "torch", 0, guidance=2.0)
    path = made.pairs(TEACHER_RUN, 2.0)
    assert path.name == "pairs-w2.safetensors"
    arrays, manifest = load_checkpoint(path)
    np.testing.assert_array_equal(arrays["row"], np.arange(30) % TRAIN)
    assert manifest["config"]["guidance"] == 2.0
    run = RunAddress("torch", "dmd", "default", "k1", 0, 2.0)
    distill.run(made, "torch", "dmd", "default", "k1", 0, guidance=2.0)
    assert made.checkpoint(run).exists()
    assert made.pair_passes(run) == 30 * 2 * 2, "a guided step costs two"


def drawn(out: Path, **given: Any) -> np.ndarray:
    sample_prompt.run("a red circle left of a small blue square", 2, out, given)
    return np.asarray(Image.open(out))


def test_a_prompt_gives_one_image_of_any_checkpoint(made: Workspace, tmp_path: Path, capsys: Any) -> None:
    student, base = made.checkpoint(STUDENT_RUN), made.checkpoint(TEACHER_RUN)
    first = drawn(tmp_path / "a.png", checkpoint=student)
    assert first.shape == (256, 256, 3), "enlarged by a whole factor"
    assert (first == first[::16, ::16].repeat(16, 0).repeat(16, 1)).all()
    for name, given in {"seed": {"seed": 1}, "teacher": {"checkpoint": base}}.items():
        other = drawn(tmp_path / f"{name}.png", **{"checkpoint": student} | given)
        assert not np.array_equal(other, first), name
    guided = drawn(tmp_path / "w.png", checkpoint=base, guidance=2.0)
    assert not np.array_equal(guided, drawn(tmp_path / "w0.png", checkpoint=base))
    on_jax = drawn(tmp_path / "jax.png", checkpoint=student, backend="jax")
    assert np.abs(on_jax.astype(int) - first).max() <= 1
    named = drawn(tmp_path / "b.png", profile=str(made.root.parent / "mine.yaml"), results=made.root.parent)
    np.testing.assert_array_equal(named, first)  # the 2-step student of the alternating algorithm
    assert "note" not in capsys.readouterr().err
    sample_prompt.run("a red circle", 3, tmp_path / "c.png", {"checkpoint": student})
    assert "trained for 2 steps, not 3" in capsys.readouterr().err


def test_a_prompt_is_what_the_image_shows(made: Workspace, tmp_path: Path) -> None:
    """The same noise, for the caption that evaluated image 0 was drawn for, gives evaluated image 0."""
    captions = ImageSet.load(made.data("heldout")).captions
    assert captions is not None
    sample_prompt.run(str(captions[0]), 2, tmp_path / "a.png", {"checkpoint": made.checkpoint(STUDENT_RUN)})
    (images,) = load_arrays(made.run(STUDENT_RUN) / "samples-ancestral-k2.npz", "images")
    image = np.asarray(Image.open(tmp_path / "a.png"))[::16, ::16].transpose(2, 0, 1)
    assert np.abs(image.astype(int) - images[0]).max() <= 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"checkpoint": Path("absent.safetensors")}, r"absent\.safetensors"),
        ({"guidance": 3.0}, "has no run of .*guidance 3"),
        ({"method": "progressive"}, "has no run of .*progressive"),
        ({"backend": "jax"}, r"student\.safetensors: no such file; train it first, name"),
        ({"profile": "digits"}, "profile 'digits' has no captions"),
        ({"checkpoint": "second_moments"}, "not the result of a training run"),
        ({"checkpoint": "student", "method": MATCHING}, "--method has no effect with --checkpoint"),
        ({"checkpoint": "student", "guidance": 1.0}, "leave out --guidance"),
    ],
    ids=str,
)
def test_prompts_that_cannot_be_drawn_are_refused(
    made: Workspace, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    if given.get("checkpoint") == "student":
        given = given | {"checkpoint": made.checkpoint(STUDENT_RUN)}
    elif given.get("checkpoint") == "second_moments":
        given = {"checkpoint": made.run(TEACHER_RUN) / "second_moments.safetensors"}
    elif not given.keys() & {"checkpoint", "profile"}:
        given = given | {"profile": str(made.root.parent / "mine.yaml"), "results": made.root.parent}
    with pytest.raises(UserError, match=message):
        drawn(tmp_path / "a.png", **given)
    assert not (tmp_path / "a.png").exists()


def test_a_student_that_is_not_there_comes_with_the_command_that_trains_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"train it first \(snakemake --cores all --config profile=shapes\), name"):
        drawn(tmp_path / "a.png")
    path = write_profile(tmp_path / "mine.yaml", CHANGES)
    with pytest.raises(UserError, match=rf"\(snakemake --cores all --config profile={path}\)"):
        drawn(tmp_path / "a.png", profile=str(path))


def test_an_unknown_word_and_a_missing_folder_are_refused(made: Workspace, tmp_path: Path) -> None:
    given = {"checkpoint": made.checkpoint(STUDENT_RUN)}
    with pytest.raises(UserError, match="unknown word 'cirle'; did you mean 'circle'"):
        sample_prompt.run("a red cirle", 2, tmp_path / "a.png", given)
    with pytest.raises(UserError, match="output folder does not exist"):
        sample_prompt.run("a red circle", 2, tmp_path / "absent" / "a.png", given)
    with pytest.raises(UserError, match=r"a\.jpg: the image is a PNG"):
        sample_prompt.run("a red circle", 2, tmp_path / "a.jpg", given)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    """Captions that changed after their features were made, and samples of other captions than the judge's."""
    workspace = Workspace(write_profile(tmp_path / "mine.yaml", CHANGES), tmp_path)
    workspace.data("train").parent.mkdir(parents=True)
    for split, allowed in (("train", ~HELD_OUT), ("heldout", HELD_OUT)):
        draw(split, HELDOUT, allowed).save(workspace.data(split))
    text.run(workspace)
    reference.run(workspace)
    teacher.run(workspace, "torch", 0)
    draw("other", HELDOUT, HELD_OUT).save(workspace.data("heldout"))
    with pytest.raises(UserError, match=r"heldout\.npz: features of other captions.*make them anew: fewstep text"):
        sample.run(workspace, "torch", TEACHER, "default", TEACHER, 0)
    draw("heldout", HELDOUT, HELD_OUT).save(workspace.data("heldout"))
    sample.run(workspace, "torch", TEACHER, "default", TEACHER, 0)
    draw("other", HELDOUT, HELD_OUT).save(workspace.data("heldout"))
    with pytest.raises(UserError, match="samples are of other captions"):
        evaluate.run(workspace, "torch", TEACHER, "default", TEACHER, 0)


def test_guidance_needs_a_teacher_that_was_trained_without_conditions_too(tmp_path: Path) -> None:
    path = write_profile(tmp_path / "mine.yaml", CHANGES | {"teacher.label_dropout": 0.0})
    with pytest.raises(UserError, match=r"teacher\.label_dropout: guidance needs"):
        Workspace(path, tmp_path)


def test_features_of_another_encoder_are_refused(made: Workspace) -> None:
    conditions = prompts(made, 1).conditions
    assert isinstance(conditions, Captions)
    with pytest.raises(UserError, match="other weights of the text encoder"):
        conditions.require("0" * 64, Path("student.safetensors"))
