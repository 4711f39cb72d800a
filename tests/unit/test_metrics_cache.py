"""Cached features: equal to extracted ones, never of other images or another extractor, and repaired when damaged."""

import dataclasses

import numpy as np
import pytest

from harness.datasets import load_dataset
from harness.errors import UserError
from harness.metrics.cache import FeatureCache, code_of, user_cache
from harness.metrics.evaluate import evaluate_images
from harness.metrics.extraction import gather, in_batches
from harness.metrics.extractors import load_extractor
from harness.metrics.reference import build_reference
from harness.provenance import source_hash


class Counting:
    """The digits' extractor as one that is not cheap and counts the images it sees."""

    def __init__(self):
        self.seen = 0
        inner = load_extractor("digits-cnn")

        def forward(images):
            self.seen += len(images)
            return inner.forward(images)

        self.extractor = dataclasses.replace(inner, forward=forward, batch=50, cheap=False)

    def gather(self, images, folder, **changes):
        extractor = dataclasses.replace(self.extractor, **changes)
        return gather(in_batches(images, extractor), len(images), extractor, FeatureCache(folder))


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return load_dataset("digits", "heldout").pixels


def test_images_are_extracted_once_and_the_cached_features_are_equal(counting, images, tmp_path):
    plain = load_extractor("digits-cnn").extract(images, 50)
    for _ in range(2):
        found = counting.gather(images, tmp_path / "new" / "features")
        assert found.features.dtype == found.logits.dtype == np.float32
        np.testing.assert_array_equal(found.features, plain.features)
        np.testing.assert_array_equal(found.logits, plain.logits)
    assert counting.seen == len(images)


def test_what_was_extracted_before_an_interruption_is_kept(counting, images, tmp_path):
    counting.gather(images[:100], tmp_path)
    counting.gather(images, tmp_path)
    assert counting.seen == len(images)


def test_other_images_and_other_extractors_have_other_features(counting, images, tmp_path):
    images = images[:50]
    counting.gather(images, tmp_path)
    brighter = images.copy()
    brighter[7, 0, 3, 3] ^= 1
    for changed in (brighter, images[::-1], images[:49]):
        counting.seen = 0
        counting.gather(changed, tmp_path)
        assert counting.seen == len(changed)
    for change in ({"weights_hash": "0" * 64}, {"resize": "bicubic"}, {"name": "shapes-cnn"}):
        counting.seen = 0
        counting.gather(images, tmp_path, **change)
        assert counting.seen == 50


def test_an_edited_extractor_has_other_features(counting, images, tmp_path, monkeypatch):
    counting.gather(images, tmp_path)
    monkeypatch.setattr("harness.metrics.cache.code_of", lambda name: f"{name}, edited")
    counting.gather(images, tmp_path)
    assert counting.seen == 2 * len(images)
    assert code_of("digits-cnn") == source_hash("harness.metrics.digits_cnn") != code_of("shapes-cnn")


def test_equal_bytes_of_another_shape_are_other_images(counting, images, tmp_path):
    cache = FeatureCache(tmp_path)
    assert cache.path(images, counting.extractor) != cache.path(images.reshape(-1, 1, 4, 16), counting.extractor)


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_file_is_replaced_with_a_warning_that_names_it(counting, images, tmp_path, capsys, damage):
    images = images[:50]
    expected = counting.gather(images, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[:-200], "altered": content, "empty": b""}[damage])
    for _ in range(2):
        np.testing.assert_array_equal(counting.gather(images, tmp_path).features, expected.features)
    assert counting.seen == 100
    assert capsys.readouterr().err == f"warning: {path}: damaged; its 50 images are extracted anew\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_line(counting, images, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/features: cannot be created .*choose another folder"):
        counting.gather(images, tmp_path / "file" / "features")


def test_a_cheap_extractor_leaves_no_files(counting, images, tmp_path):
    for _ in range(2):
        counting.gather(images, tmp_path / "features", cheap=True)
    assert counting.seen == 2 * len(images)
    assert not (tmp_path / "features").exists()


def test_scoring_the_same_images_again_extracts_nothing(counting, tmp_path):
    heldout, cache = load_dataset("digits", "heldout"), FeatureCache(tmp_path)
    scores = []
    for _ in range(2):
        reference = build_reference(heldout, counting.extractor, cache)
        arguments = (heldout.pixels[:100], heldout.labels[:100], counting.extractor, reference, reference)
        scores.append(evaluate_images(*arguments, heldout.pixels, cache))
    assert scores[0] == scores[1]
    assert counting.seen == len(heldout)  # the first 100 are batches of the whole


def test_the_users_cache_follows_the_desktop_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache().folder == tmp_path / "fewstep" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache().folder == tmp_path / ".cache" / "fewstep" / "features"
