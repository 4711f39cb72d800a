"""The digits extractor: pinned weights, features re-derived in NumPy, deterministic training, required accuracy."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from harness.datasets import ImageSet, load_dataset
from harness.errors import UserError
from harness.metrics import digits_cnn
from harness.metrics.extractors import load_extractor
from harness.metrics.images import from_uint8, to_uint8


@pytest.fixture(scope="module")
def train() -> ImageSet:
    return load_dataset("digits", "train")


@pytest.fixture(scope="module")
def heldout() -> ImageSet:
    return load_dataset("digits", "heldout")


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("digits-cnn")


def first(image_set: ImageSet, n: int) -> ImageSet:
    return dataclasses.replace(image_set, images=image_set.images[:n], labels=image_set.labels[:n])


def test_the_committed_weights_are_accurate_and_of_this_split(train, heldout):
    report = digits_cnn.validate(digits_cnn.WEIGHTS, heldout)
    assert report["accuracy_heldout"] >= 0.98
    assert report["sha256"] == digits_cnn.WEIGHTS_SHA256
    with safe_open(digits_cnn.WEIGHTS, framework="np") as file:
        stored = json.loads(file.metadata()["extractor"])
    assert stored["train_digest"] == train.digest
    assert stored["accuracy_heldout"] == pytest.approx(report["accuracy_heldout"], abs=0.006)  # one image of 179
    assert digits_cnn.WEIGHTS.stat().st_size < 400_000


def test_features_and_logits_equal_a_numpy_forward_pass(extractor, heldout):
    w = {name: value.astype(np.float64) for name, value in load_file(digits_cnn.WEIGHTS).items()}
    images = to_uint8(heldout.images[:5])

    def silu(x):
        return x / (1 + np.exp(-x))

    def convolve(x, name):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        return np.einsum("nchwij,ocij->nohw", windows, w[f"{name}.weight"]) + w[f"{name}.bias"][:, None, None]

    def halve(x):
        return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean(axis=(3, 5))

    x = halve(silu(convolve(silu(convolve(from_uint8(images), "conv1")), "conv2")))
    x = halve(silu(convolve(x, "conv3"))).reshape(len(images), -1)
    features = silu(x @ w["hidden.weight"].T + w["hidden.bias"])
    found = extractor.extract(images)
    assert found.features.dtype == found.logits.dtype == np.float64
    np.testing.assert_allclose(found.features, features, atol=1e-5)
    np.testing.assert_allclose(found.logits, features @ w["head.weight"].T + w["head.bias"], atol=1e-4)


def test_features_do_not_depend_on_the_batch_size(extractor, heldout):
    images = to_uint8(heldout.images)
    whole, parts = extractor.extract(images), extractor.extract(images, batch_size=7)
    np.testing.assert_allclose(parts.features, whole.features, atol=2e-5)
    np.testing.assert_allclose(parts.logits, whole.logits, atol=2e-5)


def test_images_of_another_kind_are_refused(extractor, heldout):
    for bad in (heldout.images, np.zeros((4, 3, 8, 8), np.uint8), np.zeros((4, 1, 16, 16), np.uint8)):
        with pytest.raises(UserError, match=r"'digits-cnn' must be uint8 \(n, 1, 8, 8\)"):
            extractor.extract(bad)


@pytest.mark.parametrize("quantity", ["features", "logits"])
def test_non_finite_outputs_are_named(extractor, quantity):
    def forward(images):
        out = {"features": np.zeros((len(images), 64)), "logits": np.zeros((len(images), 10))}
        out[quantity][-1, 0] = np.nan
        return out["features"], out["logits"]

    with pytest.raises(UserError, match=f"^{quantity} of the extractor 'digits-cnn' are not finite"):
        dataclasses.replace(extractor, forward=forward).extract(np.zeros((3, 1, 8, 8), np.uint8))


def test_unknown_extractors_are_listed():
    with pytest.raises(
        UserError, match=r"unknown extractor 'inception'; .* known: digits-cnn, shapes-cnn, shapes-clip, inc"
    ):
        load_extractor("inception")


def test_altered_or_absent_weights_are_refused_before_they_are_parsed(tmp_path, monkeypatch):
    altered = bytearray(digits_cnn.WEIGHTS.read_bytes())
    altered[-1] ^= 1  # a valid file with one other weight
    path = tmp_path / "weights.safetensors"
    path.write_bytes(altered)
    monkeypatch.setattr(digits_cnn, "WEIGHTS", path)
    with pytest.raises(UserError, match="is not the pinned"):
        load_extractor("digits-cnn")
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        load_extractor("digits-cnn")


def test_validation_refuses_damaged_foreign_and_inaccurate_files(tmp_path, heldout):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(digits_cnn.WEIGHTS.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        digits_cnn.validate(path, heldout)
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="not weights of this extractor"):
        digits_cnn.validate(path, heldout)
    with pytest.raises(UserError, match="another split"):
        digits_cnn.validate(digits_cnn.WEIGHTS, first(heldout, 100))
    weights = load_file(digits_cnn.WEIGHTS)
    weights["head.bias"][3] += 5
    save_file(weights, path, metadata={"extractor": json.dumps({"heldout_digest": heldout.digest})})
    with pytest.raises(UserError, match=r"held-out accuracy 0\.\d+ is below the required 0\.97"):
        digits_cnn.validate(path, heldout)


def test_training_is_reproducible_and_leaves_global_state_alone(tmp_path, train, heldout, monkeypatch):
    monkeypatch.setattr(digits_cnn, "REQUIRED_ACCURACY", 0.5)
    few = first(train, 128)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    report = digits_cnn.train_extractor(few, heldout, tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(1)
    digits_cnn.train_extractor(few, heldout, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert report["train_digest"] == few.digest
    assert digits_cnn.validate(tmp_path / "a.safetensors", heldout).items() >= report.items()


def test_training_that_fails_to_learn_writes_nothing(tmp_path, train, heldout):
    few = first(train, 64)
    shuffled = dataclasses.replace(few, labels=np.roll(few.labels, 1))
    with pytest.raises(UserError, match="below the required"):
        digits_cnn.train_extractor(shuffled, heldout, tmp_path / "a.safetensors")
    assert not any(tmp_path.iterdir())
