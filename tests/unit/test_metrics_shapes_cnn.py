"""The judge of the shapes: pinned weights, accuracy on scenes of both kinds, and shares that mean what they say."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from harness.datasets import ImageSet, load_dataset
from harness.datasets.shapes import ATTRIBUTES, SCENES, SINGLE
from harness.errors import UserError
from harness.metrics import shapes_cnn
from harness.metrics.extractors import load_extractor
from harness.metrics.shapes_cnn import attribute_accuracy
from harness.verbs import data as data_verb
from harness.verbs import extractor as extractor_verb
from harness.workspace import Workspace
from tests.profiles import write_profile


def rows(images: ImageSet, chosen: np.ndarray | slice) -> ImageSet:
    parts = {field: getattr(images, field)[chosen] for field in ("images", "labels", "captions")}
    return dataclasses.replace(images, **parts)


@pytest.fixture(scope="module")
def heldout() -> ImageSet:
    return load_dataset("shapes", "heldout")


@pytest.fixture(scope="module")
def few(heldout: ImageSet) -> ImageSet:
    return rows(heldout, slice(0, 600))


def test_the_committed_weights_are_accurate_and_of_this_split(heldout: ImageSet) -> None:
    report = shapes_cnn.validate(shapes_cnn.WEIGHTS, heldout)
    assert report["sha256"] == shapes_cnn.WEIGHTS_SHA256
    assert report["accuracy_heldout"] >= 0.99
    assert min(report["one_object"].values()) >= 0.99
    assert report["two_objects"]["joint"] >= 0.97
    with safe_open(shapes_cnn.WEIGHTS, framework="np") as file:
        stored = json.loads(file.metadata()["extractor"])
    assert stored["train_digest"] == load_dataset("shapes", "train").digest
    assert stored["accuracy_heldout"] == pytest.approx(report["accuracy_heldout"], abs=0.001)
    assert shapes_cnn.WEIGHTS.stat().st_size < 400_000


def test_scenes_that_are_trained_on_are_read_as_well_as_those_that_are_not() -> None:
    validation = load_dataset("shapes", "validation")
    single = SINGLE[validation.labels]
    assert attribute_accuracy(validation.images[single], validation.labels[single])["joint"] >= 0.99
    assert attribute_accuracy(validation.images[~single], validation.labels[~single])["joint"] >= 0.97


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_wrong_attribute_is_counted_and_no_other(few: ImageSet, attribute: str) -> None:
    one = rows(few, SINGLE[few.labels])
    asked = SCENES[one.labels].copy()
    single = SCENES[SINGLE]
    wrong = np.arange(len(one)) % 4 == 0
    asked[attribute][wrong] = (asked[attribute][wrong] + 1) % (single[attribute].max() + 1)
    number = {scene: i for i, scene in enumerate(single.tolist())}
    before = attribute_accuracy(one.images, one.labels)
    after = attribute_accuracy(one.images, np.array([number[scene] for scene in asked.tolist()]))
    for name in ATTRIBUTES:
        assert after[name] == pytest.approx(0.75 if name == attribute else before[name], abs=0.01)
    assert after["joint"] == pytest.approx(0.75, abs=0.01)


def test_two_objects_in_place_of_one_and_objects_that_are_swapped_are_wrong(few: ImageSet) -> None:
    single = SINGLE[few.labels]
    one, two = rows(few, single), rows(few, ~single)
    n = len(two)
    assert attribute_accuracy(two.images, one.labels[:n])["position"] < 0.02
    number = {scene: i for i, scene in enumerate(SCENES.tolist())}
    swapped = [number[(s2, c2, z2, p, b, s, c, z)] for s, c, z, p, b, s2, c2, z2 in SCENES[two.labels].tolist()]
    shares = attribute_accuracy(two.images, np.array(swapped))
    assert shares["colour"] < 0.02  # the two colours of a scene differ
    assert shares["joint"] < 0.02
    assert shares["position"] > 0.98
    assert list(shares) == [*SCENES.dtype.names, "joint"]


def test_images_without_the_object_are_not_read_right(few: ImageSet) -> None:
    one = rows(few, SINGLE[few.labels])
    noise = np.random.default_rng(0).integers(0, 256, one.images.shape, dtype=np.uint8)
    assert attribute_accuracy(noise, one.labels)["joint"] < 0.05
    assert attribute_accuracy(np.roll(one.images, 1, axis=0), one.labels)["joint"] < 0.05


def test_bad_images_and_mixed_scenes_are_refused(few: ImageSet) -> None:
    with pytest.raises(UserError, match="one object and of two are not judged together"):
        attribute_accuracy(few.images, few.labels)
    with pytest.raises(UserError, match=r"must be uint8 \(n, 3, 16, 16\)"):
        attribute_accuracy(few.images[:, :1], few.labels)


def test_the_extractor_gives_the_features_and_classifies_shape_and_colour(few: ImageSet) -> None:
    one = rows(few, SINGLE[few.labels])
    seen = load_extractor("shapes-cnn").extract(one.images, batch_size=7)
    assert seen.features.shape == (len(one), 64)
    assert seen.logits is not None
    np.testing.assert_allclose(np.exp(seen.logits).sum(axis=1), 1, atol=1e-5)
    asked = SCENES[one.labels]
    assert (seen.logits.argmax(axis=1) == asked["shape"] * 6 + asked["colour"]).mean() > 0.99
    whole = load_extractor("shapes-cnn").extract(one.images)
    np.testing.assert_allclose(seen.features, whole.features, atol=1e-4)


def test_features_equal_a_numpy_forward_pass(few: ImageSet) -> None:
    w = {name: value.astype(np.float64) for name, value in load_file(shapes_cnn.WEIGHTS).items()}
    images = few.images[:3] / 127.5 - 1

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    def convolve(x: np.ndarray, name: str) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        return silu(np.einsum("nchwij,ocij->nohw", windows, w[f"{name}.weight"]) + w[f"{name}.bias"][:, None, None])

    blocks = images.reshape(3, 3, 8, 2, 8, 2).transpose(0, 1, 3, 5, 2, 4).reshape(3, 12, 8, 8)
    x = convolve(convolve(convolve(blocks, "conv1"), "conv2"), "conv3")
    x = x.reshape(3, 64, 4, 2, 4, 2).mean(axis=(3, 5)).reshape(3, -1)
    expected = silu(x @ w["hidden.weight"].T + w["hidden.bias"]) / shapes_cnn.FEATURE_SCALE
    np.testing.assert_allclose(load_extractor("shapes-cnn").extract(few.images[:3]).features, expected, atol=1e-4)


def test_altered_foreign_and_inaccurate_weights_are_refused(
    tmp_path: Path, heldout: ImageSet, few: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="not weights of this extractor"):
        shapes_cnn.validate(path, heldout)
    with pytest.raises(UserError, match="another split"):
        shapes_cnn.validate(shapes_cnn.WEIGHTS, few)
    weights = load_file(shapes_cnn.WEIGHTS)
    weights["heads.bias"][4] += 50  # everything red
    save_file(weights, path, metadata={"extractor": json.dumps({"heldout_digest": heldout.digest})})
    with pytest.raises(UserError, match=r"held-out accuracy 0\.\d+ of colour is below 0\.97"):
        shapes_cnn.validate(path, heldout)
    monkeypatch.setattr(shapes_cnn, "WEIGHTS", path)
    with pytest.raises(UserError, match="is not the pinned"):
        load_extractor("shapes-cnn")


def test_the_verb_reports_and_retrains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = write_profile(tmp_path / "mine.yaml", {"data": {"name": "shapes"}, "extractor": "shapes-cnn"})
    workspace = Workspace(profile, tmp_path)
    data_verb.run(workspace)
    extractor_verb.run(workspace, None)
    report = json.loads(workspace.extractor_report.read_text())
    assert report["sha256"] == shapes_cnn.WEIGHTS_SHA256
    assert report["accuracy_heldout"] >= 0.99
    monkeypatch.setattr(shapes_cnn, "STEPS", 5)
    with pytest.raises(UserError, match="is below 0"):
        extractor_verb.run(workspace, tmp_path / "new.safetensors")


def test_training_is_reproducible_and_writes_nothing_below_the_bar(
    tmp_path: Path, few: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes_cnn, "STEPS", 5)
    with pytest.raises(UserError, match=r"held-out accuracy .* is below 0\.97"):
        shapes_cnn.train_extractor(few, few, tmp_path / "a.safetensors")
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(shapes_cnn, "REQUIRED_ACCURACY", 0.0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    report = shapes_cnn.train_extractor(few, few, tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(1)
    shapes_cnn.train_extractor(few, few, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert shapes_cnn.validate(tmp_path / "a.safetensors", few).items() >= report.items()
