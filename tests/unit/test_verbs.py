"""Training and sampling at their addresses: what is complete is left alone, what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.addresses import TEACHER, RunAddress
from harness.checkpoint import load_checkpoint
from harness.config import digest
from harness.datasets import ImageSet
from harness.datasets.archive import load_arrays
from harness.errors import UserError
from harness.training import Run
from harness.verbs import distill, during, sample, table, teacher
from harness.verbs import train as training_verb
from harness.workspace import Workspace
from tests.conftest import SPEC, random_batch
from tests.profiles import MATCHING, write_profile

TEACHER_RUN = RunAddress("torch", TEACHER, "default", TEACHER, 0)
STUDENT_RUN = RunAddress("torch", MATCHING, "default", "k2", 0)


def open_workspace(folder: Path, changes: dict[str, Any] | None = None, images: int = 0) -> Workspace:
    """A workspace with 4x4 images; `images` chooses which."""
    workspace = Workspace(write_profile(folder / "mine.yaml", changes), folder)
    workspace.data("train").parent.mkdir(parents=True, exist_ok=True)
    batch = random_batch(SPEC, 30, seed=images)
    ImageSet("tiny", "train", batch["images"], batch["condition"], SPEC.num_classes).save(workspace.data("train"))
    return workspace


def train_teacher(workspace: Workspace) -> Path:
    teacher.run(workspace, "torch", 0)
    return workspace.run(TEACHER_RUN)


def train_student(workspace: Workspace) -> Path:
    distill.run(workspace, "torch", MATCHING, "default", "k2", 0)
    return workspace.run(STUDENT_RUN)


def draw(workspace: Workspace, run: RunAddress) -> None:
    sample.run(workspace, run.backend, run.method, run.variant, run.student, run.seed)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below the folder: when it was changed, and what it holds."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def trained(tmp_path: Path) -> Workspace:
    """A workspace in which teacher and student are trained."""
    workspace = open_workspace(tmp_path)
    train_teacher(workspace)
    train_student(workspace)
    return workspace


def test_a_run_says_what_it_was_made_from(trained: Workspace) -> None:
    _, of_teacher = load_checkpoint(trained.run(TEACHER_RUN) / "teacher.safetensors")
    _, of_student = load_checkpoint(trained.run(STUDENT_RUN) / "student.safetensors")
    data = ImageSet.load(trained.data("train"))
    for run, manifest in ((TEACHER_RUN, of_teacher), (STUDENT_RUN, of_student)):
        assert manifest["config"] == trained.run_config(run)
        assert manifest["data"] == data.digest
        assert manifest["method"] == run.method
        assert manifest["network"] == vars(trained.spec((1, 4, 4), SPEC.num_classes))
        summary = json.loads((trained.run(run) / "train.json").read_text())
        assert summary["config"] == digest(trained.run_config(run))
        assert summary["provenance"].keys() >= {"fewstep", "git_commit", "versions", "cpu"}
    assert of_student["teacher"] == of_teacher["digest"]


def test_equal_runs_have_equal_weights(trained: Workspace, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    again = open_workspace(tmp_path / "again")
    for train, name in ((train_teacher, "teacher"), (train_student, "student")):
        ours = train(again) / f"{name}.safetensors"
        theirs = trained.root / ours.relative_to(again.root)
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_complete_run_is_left_alone(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(trained.root)
    train_teacher(trained)
    train_student(trained)
    assert contents(trained.root) == before
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()][-2:] == ["already trained"] * 2


@pytest.mark.parametrize(
    ("changes", "images", "why"),
    [
        ({"teacher.updates": 7}, 0, "config.teacher.updates is 6, expected 7"),
        ({"network.width": 32}, 0, "config.network.width is 16, expected 32; network.width is 16, expected 32"),
        ({}, 1, "data is [0-9a-f]+, expected [0-9a-f]+"),
    ],
)
def test_a_result_of_another_run_is_refused_and_kept(
    trained: Workspace, tmp_path: Path, changes: dict[str, Any], images: int, why: str
) -> None:
    other = open_workspace(tmp_path, changes, images)
    before = contents(trained.run(TEACHER_RUN))
    with pytest.raises(UserError, match=rf"teacher.safetensors: another run's result \({why}\); delete its folder"):
        train_teacher(other)
    assert contents(trained.run(TEACHER_RUN)) == before


def test_an_incomplete_result_is_refused(trained: Workspace) -> None:
    (trained.run(TEACHER_RUN) / "train.json").unlink()
    with pytest.raises(UserError, match=r"another run's result \(train.json is missing\); delete its folder"):
        train_teacher(trained)


def test_a_damaged_result_is_refused_and_kept(trained: Workspace) -> None:
    path = trained.run(TEACHER_RUN) / "teacher.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = contents(trained.run(TEACHER_RUN))
    with pytest.raises(UserError, match="damaged"):
        train_teacher(trained)
    assert contents(trained.run(TEACHER_RUN)) == before


def test_changes_that_leave_the_weights_alone_leave_the_run_complete(trained: Workspace, tmp_path: Path) -> None:
    before = contents(trained.run(TEACHER_RUN))
    train_teacher(open_workspace(tmp_path, {"evaluation.n_samples": 50, "teacher.samplers": {"ddim": [8]}}))
    assert contents(trained.run(TEACHER_RUN)) == before


def test_missing_data_names_the_verb_that_makes_them(tmp_path: Path) -> None:
    workspace = Workspace(write_profile(tmp_path / "mine.yaml"), tmp_path)
    with pytest.raises(UserError, match=f"{workspace.data('train')}: no such file; write it first, with: fewstep data"):
        train_teacher(workspace)
    assert not workspace.root.exists()


def test_a_student_needs_its_teacher(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    with pytest.raises(UserError, match=r"torch/teacher/default/teacher/seed0/teacher.safetensors: .* train it first"):
        train_student(workspace)
    assert not workspace.run(STUDENT_RUN).exists()


def test_a_student_refuses_the_teacher_of_another_configuration(trained: Workspace, tmp_path: Path) -> None:
    other = open_workspace(tmp_path, {"teacher.updates": 7, "methods.0.steps": [2, 4]})
    with pytest.raises(UserError, match=r"another configuration \(teacher.updates is 6, expected 7\)"):
        distill.run(other, "torch", MATCHING, "default", "k4", 0)


def keys(folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], images: int = 0) -> dict[str, str]:
    """What the resume states of teacher and student are bound to."""
    bound: dict[str, str] = {}
    folder.mkdir()
    train = Run.train

    def recorded(run: Run, manifest: dict[str, Any], key: str, *rest: Any) -> None:
        bound[run.method.id] = key
        train(run, manifest, key, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", recorded)
        workspace = open_workspace(folder, changes, images)
        train_teacher(workspace)
        train_student(workspace)
    return bound


def test_resume_states_are_bound_to_configuration_data_teacher_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = keys(tmp_path / "plain", monkeypatch, {})
    assert keys(tmp_path / "log", monkeypatch, {"log_every": 1, "teacher.checkpoint_every": 1}) == plain
    others = {
        "teacher": keys(tmp_path / "teacher", monkeypatch, {"teacher.ema_decay": 0.25}),
        "data": keys(tmp_path / "data", monkeypatch, {}, images=1),
    }
    student = keys(tmp_path / "student", monkeypatch, {"methods.0.batch": 5})
    monkeypatch.setattr(training_verb, "source_hash", lambda *modules: "edited")
    others["code"] = keys(tmp_path / "code", monkeypatch, {})
    for name, other in others.items():
        assert all(other[method] != plain[method] for method in plain), name
    assert student[TEACHER] == plain[TEACHER]
    assert student[MATCHING] != plain[MATCHING]


def test_samples_are_balanced_images_of_every_setting(trained: Workspace) -> None:
    for run in (TEACHER_RUN, STUDENT_RUN):
        draw(trained, run)
        names = {setting.name for setting in trained.settings(run)}
        found = {path.name for path in trained.run(run).glob("samples-*.npz")}
        assert found == {f"samples-{name}.npz" for name in names}
        record = json.loads((trained.run(run) / "sampling.json").read_text())
        assert record["images_per_second"].keys() == names
        for name in names:
            images, labels = load_arrays(trained.run(run) / f"samples-{name}.npz", "images", "labels")
            assert (images.shape, images.dtype) == ((20, 1, 4, 4), np.uint8)
            np.testing.assert_array_equal(labels, np.arange(20) % SPEC.num_classes)
            assert images.std() > 1


def test_samples_do_not_depend_on_the_batch(trained: Workspace, tmp_path: Path) -> None:
    drawn = []
    for batch in (7, 20):
        draw(open_workspace(tmp_path, {"evaluation.batch": batch}), TEACHER_RUN)
        drawn.append(load_arrays(trained.run(TEACHER_RUN) / "samples-ancestral-k4.npz", "images", "labels"))
    (images_a, labels_a), (images_b, labels_b) = drawn
    np.testing.assert_array_equal(labels_a, labels_b)
    assert np.abs(images_a.astype(int) - images_b).max() <= 1, "rounding may fall on either side"


def test_sampling_refuses_weights_of_another_configuration(trained: Workspace, tmp_path: Path) -> None:
    other = open_workspace(tmp_path, {"methods.0.options": {"weight": "flat"}})
    with pytest.raises(UserError, match=r"another configuration \(student.options.weight is None, expected flat\)"):
        draw(other, STUDENT_RUN)
    assert not list(trained.run(STUDENT_RUN).glob("samples-*"))


def test_evaluation_during_training_is_for_runs_that_the_profile_names(trained: Workspace) -> None:
    with pytest.raises(UserError, match=r"no evaluation during the training of .* \(default\); add evaluation.during"):
        during.run(trained, "torch", MATCHING, "default", "k2", 0)


def test_a_result_without_the_snapshots_that_are_wanted_is_refused(trained: Workspace, tmp_path: Path) -> None:
    other = open_workspace(tmp_path, {"evaluation.during": {"every": 4, "n_samples": 10}})
    train_teacher(other)
    with pytest.raises(UserError, match=r"another run's result \(snapshots/update4.safetensors is missing\); delete"):
        train_student(other)


def test_reporting_names_what_is_missing_and_writes_nothing(trained: Workspace) -> None:
    with pytest.raises(UserError, match=r"metrics-real-data.json: not there; write it with fewstep reference"):
        table.run(trained)
    trained.floor.parent.mkdir()
    trained.floor.touch()
    with pytest.raises(
        UserError, match=r"metrics-ancestral-k1.json: not there; .* fewstep sample and fewstep evaluate"
    ):
        table.run(trained)
    assert not (trained.root / "tables").exists()
