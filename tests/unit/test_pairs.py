"""Pairs of noise and image: what they are, whom they cost what, and that a student takes no others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.addresses import TEACHER, RunAddress
from harness.backends import get_backend
from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.datasets import ImageSet
from harness.diffusion import ddim
from harness.errors import UserError
from harness.noise import Noise
from harness.verbs import distill, pairs, teacher
from harness.verbs.evaluate import training_cost
from harness.workspace import Workspace
from tests.conftest import SPEC, random_batch
from tests.profiles import LENGTH, OPTIMISER, write_profile

COUNT, STEPS = 10, 3
TEACHER_RUN = RunAddress("torch", TEACHER, "default", TEACHER, 0)
STUDENT_RUN = RunAddress("torch", "dmd", "default", "k1", 0)


def open_workspace(folder: Path, **changes: Any) -> Workspace:
    method = {"id": "dmd", "steps": [1], **LENGTH, "optimiser": OPTIMISER}
    section = {"methods": [method], "pairs": {"count": COUNT, "steps": STEPS}, **changes}
    return Workspace(write_profile(folder / "mine.yaml", section), folder)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A trained teacher and its pairs."""
    workspace = open_workspace(tmp_path)
    workspace.data("train").parent.mkdir(parents=True)
    batch = random_batch(SPEC, 30)
    ImageSet("tiny", "train", batch["images"], batch["condition"], SPEC.num_classes).save(workspace.data("train"))
    teacher.run(workspace, "torch", 0)
    pairs.run(workspace, "torch", 0)
    return workspace


def test_an_image_is_where_the_deterministic_sampler_takes_its_noise(workspace: Workspace) -> None:
    arrays, manifest = load_checkpoint(workspace.pairs(TEACHER_RUN, 0.0))
    weights, about = load_checkpoint(workspace.checkpoint(TEACHER_RUN))
    assert manifest["teacher"] == about["digest"]
    spec = workspace.spec((1, 4, 4), SPEC.num_classes)
    other = get_backend("jax")  # the pairs were made by the other backend
    denoise = other.denoiser_step(spec, weights, lambda net, z, t, labels: net(z, t, labels), workspace.clock)
    z, labels = arrays["noise"], np.arange(COUNT) % SPEC.num_classes
    np.testing.assert_array_equal(arrays["labels"], labels)
    for i in range(STEPS, 0, -1):
        t, s = (np.full(COUNT, j / STEPS, np.float32) for j in (i, i - 1))
        x = other.to_numpy(denoise(z, t, labels))
        z = ddim(z, x, workspace.clock(t), workspace.clock(s))
    np.testing.assert_allclose(arrays["images"], x, atol=1e-4)


def test_no_evaluated_sample_starts_from_the_noise_of_a_pair(workspace: Workspace) -> None:
    arrays, _ = load_checkpoint(workspace.pairs(TEACHER_RUN, 0.0))
    evaluated = Noise(0).normal("sample/start", 0, 0, COUNT, (1, 4, 4))
    assert np.intersect1d(arrays["noise"], evaluated).size == 0


def test_a_student_is_trained_on_them_and_pays_for_them(workspace: Workspace) -> None:
    distill.run(workspace, "torch", "dmd", "default", "k1", 0)
    _, manifest = load_checkpoint(workspace.checkpoint(STUDENT_RUN))
    assert manifest["pairs"] == load_checkpoint(workspace.pairs(TEACHER_RUN, 0.0))[1]["digest"]
    assert manifest["config"]["student"]["pairs"] == {"count": COUNT, "steps": STEPS}
    method = workspace.make_method(STUDENT_RUN, SPEC)
    own = sum(method.passes(method.turn(step)) for step in range(LENGTH["updates"]))
    cost = training_cost(workspace, STUDENT_RUN)
    assert cost["train_passes"] == LENGTH["batch"] * own + COUNT * STEPS


def test_missing_pairs_and_those_of_another_configuration_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    other = open_workspace(tmp_path, pairs={"count": COUNT, "steps": STEPS + 1})
    with pytest.raises(UserError, match=r"pairs.safetensors: .*another configuration \(pairs.steps is 3, expected 4\)"):
        distill.run(other, "torch", "dmd", "default", "k1", 0)
    pairs_of_others, manifest = load_checkpoint(workspace.pairs(TEACHER_RUN, 0.0))
    save_checkpoint(
        workspace.pairs(TEACHER_RUN, 0.0), pairs_of_others, {"config": manifest["config"], "teacher": "0" * 64}
    )
    with pytest.raises(UserError, match=r"pairs.safetensors: the pairs are of other weights than the teacher's"):
        distill.run(workspace, "torch", "dmd", "default", "k1", 0)
    workspace.pairs(TEACHER_RUN, 0.0).unlink()
    with pytest.raises(UserError, match=r"pairs.safetensors: not there; make .* first, with: fewstep pairs"):
        distill.run(workspace, "torch", "dmd", "default", "k1", 0)
    with pytest.raises(UserError, match=r"the section pairs \(count, steps\) is missing; add it"):
        pairs.run(open_workspace(tmp_path, pairs=None), "torch", 0)
