"""Image sets: the split of the digits, content digests, and files that are whole or refused."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

from harness.datasets import ImageSet, load_dataset
from harness.errors import UserError


def test_digits_are_scikit_learns_rescaled_to_unit_range():
    images = load_dataset("digits", "all").images
    assert images.shape == (1797, 1, 8, 8)
    raw = (images.astype(np.float64) + 1) * 8
    key = np.lexsort(raw.reshape(len(raw), -1).T)
    original = load_digits().images.reshape(len(raw), -1)
    np.testing.assert_array_equal(raw.reshape(len(raw), -1)[key], original[np.lexsort(original.T)])


def test_labels_stay_with_their_images():
    data = load_digits()
    label_of = {image.tobytes(): label for image, label in zip(data.images, data.target, strict=True)}
    digits = load_dataset("digits", "heldout")
    raw = (digits.images[:, 0].astype(np.float64) + 1) * 8
    assert [label_of[image.tobytes()] for image in raw] == digits.labels.tolist()


def test_train_and_heldout_divide_the_whole():
    train, heldout, whole = (load_dataset("digits", split) for split in ("train", "heldout", "all"))
    assert len(heldout) / len(whole) == pytest.approx(0.1, abs=0.002)
    np.testing.assert_array_equal(np.concatenate([train.images, heldout.images]), whole.images)
    np.testing.assert_array_equal(np.concatenate([train.labels, heldout.labels]), whole.labels)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_split_has_even_classes_in_no_order(split):
    labels = load_dataset("digits", split).labels
    counts = np.bincount(labels, minlength=10)
    assert counts.min() > 0.94 * len(labels) / 10
    assert counts.max() < 1.06 * len(labels) / 10
    # neighbours share their label in a tenth of the cases (the file itself counts 0, 1, 2, ...: almost never)
    assert (labels[1:] == labels[:-1]).mean() == pytest.approx(0.1, abs=0.07)


def test_heldout_images_come_from_all_writers():
    data = load_digits()
    position = {image.tobytes(): i for i, image in enumerate(data.images)}
    raw = (load_dataset("digits", "heldout").images[:, 0].astype(np.float64) + 1) * 8
    found = np.array([position[image.tobytes()] for image in raw])
    tail = np.arange(len(data.images) - len(found), len(data.images))  # the naive split, for comparison

    def per_tenth(rows):
        return np.histogram(rows, bins=10, range=(0, len(data.images)))[0]

    assert per_tenth(found).min() > 0.5 * len(found) / 10
    assert per_tenth(tail).min() == 0


def test_loading_twice_gives_the_same_digest_and_content_decides_it():
    digits = load_dataset("digits", "heldout")
    assert digits.digest == load_dataset("digits", "heldout").digest
    pixel, label = digits.images.copy(), digits.labels.copy()
    pixel[3, 0, 4, 4] += 1 / 8 if pixel[3, 0, 4, 4] < 1 else -1 / 8
    label[3] = (label[3] + 1) % 10
    digests = {
        digits.digest,
        dataclasses.replace(digits, images=pixel).digest,
        dataclasses.replace(digits, labels=label).digest,
        dataclasses.replace(digits, num_classes=11).digest,
        dataclasses.replace(digits, images=digits.images.reshape(-1, 1, 4, 16)).digest,
    }
    assert len(digests) == 5


@pytest.fixture
def small() -> ImageSet:
    digits = load_dataset("digits", "heldout")
    return dataclasses.replace(digits, images=digits.images[:20], labels=digits.labels[:20])


def test_a_saved_set_is_read_back_equal_and_saved_twice_is_byte_identical(small, tmp_path):
    small.save(tmp_path / "a.npz")
    small.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = ImageSet.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.images, small.images)
    np.testing.assert_array_equal(again.labels, small.labels)
    assert (again.name, again.split, again.num_classes) == (small.name, small.split, small.num_classes)


def test_captions_are_kept_and_are_part_of_the_digest(small, tmp_path):
    text = np.array([f"caption {i}, naïve\u2028 and \n 雪" for i in range(20)], np.dtypes.StringDType())
    captioned = dataclasses.replace(small, captions=text)
    captioned.save(tmp_path / "a.npz")
    again = ImageSet.load(tmp_path / "a.npz")
    assert again.captions.tolist() == text.tolist()
    assert again.digest == captioned.digest
    assert len({small.digest, captioned.digest, dataclasses.replace(small, captions=text[::-1]).digest}) == 3
    small.save(tmp_path / "b.npz")
    assert ImageSet.load(tmp_path / "b.npz").captions is None


def test_a_truncated_file_is_refused(small, tmp_path):
    path = tmp_path / "a.npz"
    small.save(path)
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"a\.npz"):
            ImageSet.load(path)


def test_a_flipped_byte_is_refused_or_without_effect(small, tmp_path):
    path = tmp_path / "a.npz"
    small.save(path)
    whole = path.read_bytes()
    refused = 0
    positions = range(0, len(whole), 37)
    for position in positions:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            assert ImageSet.load(path).digest == small.digest
        except UserError:
            refused += 1
    assert refused > 0.8 * len(positions)


def test_arrays_that_do_not_match_the_stored_digest_are_refused(small, tmp_path):
    path = tmp_path / "a.npz"
    small.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["labels"] = np.roll(arrays["labels"], 1)
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="does not match its digest"):
        ImageSet.load(path)


def test_files_that_are_absent_or_lack_arrays_or_hold_objects_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        ImageSet.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(UserError, match="expected the arrays"):
        ImageSet.load(tmp_path / "other.npz")
    np.savez(tmp_path / "object.npz", name=np.array([{}], dtype=object))  # would need pickle
    with pytest.raises(UserError, match="not an npz file"):
        ImageSet.load(tmp_path / "object.npz")


def test_unknown_names_and_splits_list_the_known_ones():
    with pytest.raises(UserError, match=r"unknown data set 'mnist'; known: .*digits"):
        load_dataset("mnist", "train")
    with pytest.raises(UserError, match="unknown split 'test'; known: train, heldout, validation, all"):
        load_dataset("digits", "test")
    with pytest.raises(UserError, match="has no split 'validation'; it has: train, heldout, all"):
        load_dataset("digits", "validation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((20, 1, 8, 8))}, "images must be float32"),
        ({"images": np.zeros((20, 64), np.float32)}, "images must be float32"),
        ({"images": np.full((20, 1, 8, 8), np.nan, np.float32)}, "finite"),
        ({"images": np.full((20, 1, 8, 8), 1.5, np.float32)}, r"in \[-1, 1\]"),
        ({"labels": np.zeros(19, np.int64)}, "labels must be int64"),
        ({"labels": np.zeros(20, np.int32)}, "labels must be int64"),
        ({"labels": np.full(20, 10)}, r"labels must be in \[0, 10\)"),
        ({"captions": np.array(["x"] * 20)}, "captions must be strings"),
        ({"captions": np.array(["x"] * 19, np.dtypes.StringDType())}, r"captions must be strings \(20,\)"),
        ({"captions": np.array(["x", ""] * 10, np.dtypes.StringDType())}, "the caption of image 1 is empty"),
    ],
)
def test_wrong_arrays_are_refused(small, change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(small, **change)
