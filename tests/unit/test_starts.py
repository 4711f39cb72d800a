"""Where networks start: the teacher, a parent, its second moments, a head's initial weights, or a published file."""

from dataclasses import replace

import numpy as np
import pytest

from harness import registry as registered_methods
from harness.addresses import TEACHER, RunAddress
from harness.backends import get_backend
from harness.checkpoint import content_digest, load_checkpoint
from harness.datasets import ImageSet
from harness.method import Average, CopyOf, Fresh, Head, Preconditioner, Pretrained, Start
from harness.moment_matching import AlternatingMomentMatching
from harness.networks.transformer import initial_weights
from harness.noise import Noise
from harness.registry import get_method
from harness.training import BatchStream
from harness.verbs import data, teacher, train
from harness.verbs.train import data_stream, starting_weights
from harness.workspace import Workspace
from tests.profiles import write_profile

SEED = 0
TEACHER_RUN = RunAddress("torch", TEACHER, "default", TEACHER, SEED)
PUBLISHED = {"scale": np.array([0.5, 2.0], np.float32)}


class Everything(AlternatingMomentMatching):
    """A method whose networks start in every way, and whose students form a chain."""

    id = "everything"

    def networks(self) -> dict[str, Start]:
        head = Head({"weight": (3, 16), "bias": (3,)}, lambda params, x: x @ params["weight"].T + params["bias"])
        return {
            "copy": CopyOf(),
            "average": Average("copy", lambda step: 0.9),
            "fresh": Fresh(),
            "preconditioner": Preconditioner(),
            "head": head,
            "published": Pretrained(list, lambda paths: PUBLISHED, lambda params, x: x * params["scale"]),
        }

    @classmethod
    def parent(cls, student: str, steps: list[int]) -> str | None:
        k = int(student[1:])
        return None if k == max(steps) else f"k{2 * k}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A trained teacher of six updates; its gradients are clipped at some of them."""
    folder = tmp_path_factory.mktemp("starts")
    section = {"methods.0.id": Everything.id, "methods.0.steps": [4, 2, 1], "methods.0.overrides": {"k4": {"batch": 5}}}
    workspace = Workspace(write_profile(folder / "mine.yaml", section), folder)
    data.run(workspace)
    teacher.run(workspace, "torch", SEED)
    return workspace


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**registered_methods.registry(), Everything.id: Everything}
    monkeypatch.setattr(registered_methods, "registry", lambda: known)


def student(name: str) -> RunAddress:
    return RunAddress("torch", Everything.id, "default", name, SEED)


def test_second_moments_are_adams_of_clipped_gradients(workspace: Workspace) -> None:
    images = ImageSet.load(workspace.data("train"))
    spec = workspace.spec(images.images.shape[1:], images.num_classes)
    schedule, adam = workspace.training(TEACHER_RUN)
    method = workspace.make_method(TEACHER_RUN, spec)
    weights = dict.fromkeys(method.networks(), initial_weights(spec, SEED))
    learner = get_backend("torch").learner(method, spec, weights, adam)
    stream = BatchStream("data", {"images": images.images, "condition": images.labels}, Noise(SEED))
    v: dict[str, np.ndarray] = {}
    for step in range(schedule.updates):
        batch = stream.take(step * schedule.batch, schedule.batch)
        draws = method.draw(Noise(SEED), step, 0, schedule.batch)
        gradient = {
            key: g.astype(np.float64) for key, g in learner.gradients("denoise", batch, draws)[1]["model"].items()
        }
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for key, g in gradient.items():
            v[key] = adam.beta2 * v.get(key, 0) + (1 - adam.beta2) * (g * min(1, adam.clip / norm)) ** 2
        learner.update("denoise", batch, draws, schedule.learning_rate_at(step), {"teacher": 0.5})
    stored, manifest = load_checkpoint(workspace.run(TEACHER_RUN) / "second_moments.safetensors")
    assert (manifest["second_moments_of"], manifest["weights"], manifest["eps"]) == ("model", "live", adam.eps)
    assert stored.keys() == v.keys()
    for key, value in v.items():
        expected = value / (1 - adam.beta2**schedule.updates)
        np.testing.assert_allclose(stored[key], expected, rtol=1e-4, atol=1e-12)


def test_every_network_starts_where_the_method_says(workspace: Workspace) -> None:
    images = ImageSet.load(workspace.data("train"))
    spec = workspace.spec(images.images.shape[1:], images.num_classes)
    method, stream = workspace.make_method(student("k4"), spec), data_stream(images, images.labels, SEED)
    weights, origins = starting_weights(workspace, student("k4"), method, spec, stream)
    trained, manifest = load_checkpoint(workspace.checkpoint(TEACHER_RUN))
    moments, about = load_checkpoint(workspace.run(TEACHER_RUN) / "second_moments.safetensors")
    digests = {"teacher": manifest["digest"], "second_moments": about["digest"]}
    assert origins == {**digests, "published": content_digest(PUBLISHED, {})}
    assert weights["published"] == PUBLISHED
    for key, value in trained.items():
        np.testing.assert_array_equal(weights["copy"][key], value)
        np.testing.assert_array_equal(weights["average"][key], value)
        expected = 1 / (np.sqrt(moments[key].astype(np.float64)) + 1e-8)
        np.testing.assert_allclose(weights["preconditioner"][key], expected, rtol=1e-5)
    for key, value in initial_weights(spec, SEED).items():
        np.testing.assert_array_equal(weights["fresh"][key], value)
    head = weights["head"]
    assert not head["bias"].any()
    bound = (6 / (3 + 16)) ** 0.5
    assert 0.8 * bound < np.abs(head["weight"]).max() <= bound


def test_second_moments_that_are_missing_are_estimated_at_the_teachers_weights_and_recorded(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, steps = ImageSet.load(workspace.data("train")), 4
    spec = workspace.spec(images.images.shape[1:], images.num_classes)
    method, stream = workspace.make_method(student("k4"), spec), data_stream(images, images.labels, SEED)
    monkeypatch.setattr(train, "FURTHER_UPDATES", steps)
    file = workspace.run(TEACHER_RUN) / "second_moments.safetensors"
    content = file.read_bytes()
    file.unlink()
    try:
        weights, origins = starting_weights(workspace, student("k4"), method, spec, stream)
    finally:
        file.write_bytes(content)
    assert origins["second_moments"] == f"estimated by {steps} further steps at the teacher's weights"
    assert f"{file}: not there; estimating" in capsys.readouterr().out

    trained, _ = load_checkpoint(workspace.checkpoint(TEACHER_RUN))
    own, (schedule, adam) = workspace.make_method(TEACHER_RUN, spec), workspace.training(TEACHER_RUN)
    learner = get_backend("torch").learner(own, spec, {name: trained for name in own.networks()}, adam)
    v = {key: np.zeros(value.shape) for key, value in trained.items()}
    for step in range(steps):
        batch = stream.take(step * schedule.batch, schedule.batch)
        _, gradients = learner.gradients("denoise", batch, own.draw(Noise(SEED), step, 0, schedule.batch))
        norm = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in gradients["model"].values()))
        for key, g in gradients["model"].items():
            v[key] = adam.beta2 * v[key] + (1 - adam.beta2) * (g * min(1.0, adam.clip / norm)) ** 2
    for key, value in v.items():
        expected = 1 / (np.sqrt(value / (1 - adam.beta2**steps)) + adam.eps)
        np.testing.assert_allclose(weights["preconditioner"][key], expected, rtol=1e-3)


def test_students_of_a_chain_start_from_the_student_before(workspace: Workspace) -> None:
    assert get_method(Everything.id) is Everything
    assert workspace.parent(student("k4")) == TEACHER_RUN
    assert workspace.parent(student("k2")) == student("k4")
    assert workspace.parent(student("k1")) == replace(student("k1"), student="k2")
    config = workspace.run_config(student("k1"))["student"]
    assert (config["name"], config["parent"]["name"], config["parent"]["parent"]["name"]) == ("k1", "k2", "k4")
    assert (config["batch"], config["parent"]["parent"]["batch"]) == (4, 5), "a parent's own overrides count"
