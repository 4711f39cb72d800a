"""Reference files, identities and the whole evaluation: it must order good, poor and memorised images rightly."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from harness.datasets import load_dataset
from harness.errors import UserError
from harness.metrics.evaluate import evaluate_images, metric_identity, real_data_floor
from harness.metrics.extractors import load_extractor
from harness.metrics.images import to_uint8
from harness.metrics.reference import Reference, build_reference, cached_reference

KEYS = {"fid", "is", "is_std", "kid", "kid_std", "precision", "recall", "fid_heldout", "nn_distance"}
KEYS |= {"class_distance"}


class Bench:
    """The digits, their extractor and both references."""

    def __init__(self):
        self.train = load_dataset("digits", "train")
        self.heldout = load_dataset("digits", "heldout")
        self.extractor = load_extractor("digits-cnn")
        self.references = [build_reference(image_set, self.extractor) for image_set in (self.train, self.heldout)]
        self.reference = self.references[0]

    def evaluate(self, images, labels=None):
        """With no labels, all images are of one class."""
        labels = np.zeros(len(images), np.int64) if labels is None else labels
        return evaluate_images(to_uint8(images), labels, self.extractor, *self.references, to_uint8(self.train.images))

    def floor(self, n, seed):
        return real_data_floor(self.train, self.heldout, n, seed, self.extractor, *self.references)


@pytest.fixture(scope="module")
def bench():
    return Bench()


@pytest.fixture(scope="module")
def floors(bench):
    return [bench.floor(1000, seed) for seed in range(4)]


def counting(extractor):
    calls = []

    def forward(images):
        calls.append(len(images))
        return extractor.forward(images)

    return dataclasses.replace(extractor, forward=forward), calls


def test_a_saved_reference_is_read_back_equal(bench, tmp_path):
    bench.reference.save(tmp_path / "reference.npz")
    again = Reference.load(tmp_path / "reference.npz")
    np.testing.assert_array_equal(again.features, bench.reference.features)
    assert again.identity == bench.reference.identity
    np.testing.assert_allclose(again.moments.covariance, np.cov(bench.reference.features, rowvar=False), rtol=1e-10)


def test_a_reference_is_computed_once_and_anew_when_anything_it_depends_on_changes(bench, tmp_path):
    path = tmp_path / "reference.npz"
    extractor, calls = counting(bench.extractor)
    first = cached_reference(path, bench.heldout, extractor)
    computed = len(calls)
    assert computed > 0
    np.testing.assert_array_equal(cached_reference(path, bench.heldout, extractor).features, first.features)
    assert len(calls) == computed
    flipped = dataclasses.replace(bench.heldout, images=bench.heldout.images[:, :, ::-1])
    for image_set, other in (
        (bench.heldout, dataclasses.replace(extractor, weights_hash="0" * 64)),
        (bench.heldout, dataclasses.replace(extractor, resize="bicubic")),
        (flipped, extractor),
    ):
        reference = cached_reference(path, image_set, other)
        assert len(calls) > computed
        computed = len(calls)
        assert Reference.load(path).identity == reference.identity != first.identity


def test_damaged_references_and_missing_folders_are_refused(bench, tmp_path):
    path = tmp_path / "reference.npz"
    bench.reference.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        cached_reference(path, bench.train, bench.extractor)
    with pytest.raises(UserError, match="output folder does not exist"):
        cached_reference(tmp_path / "none" / "reference.npz", bench.train, bench.extractor)


def test_every_part_of_the_identity_changes_its_digest(bench):
    other_extractor = dataclasses.replace(bench.extractor, weights_hash="0" * 64)
    identities = [
        metric_identity(bench.extractor, bench.reference, 10_000, "balanced"),
        metric_identity(bench.extractor, bench.reference, 5_000, "balanced"),
        metric_identity(bench.extractor, bench.reference, 10_000, "as-train"),
        metric_identity(bench.extractor, bench.references[1], 10_000, "balanced"),
        metric_identity(other_extractor, build_reference(bench.train, other_extractor), 10_000, "balanced"),
    ]
    assert len({digest for _, digest in identities}) == len(identities)
    assert metric_identity(bench.extractor, bench.reference, 10_000, "balanced") == identities[0]
    identity, digest = identities[0]
    assert len(digest) == 12
    assert identity["extractor_weights"] == bench.extractor.weights_hash
    assert identity["data_digest"] == bench.train.digest
    assert {"resize", "quantiser", "scores", "n_samples", "label_policy"} <= identity.keys()


def test_a_reference_of_another_extractor_is_refused(bench):
    other = dataclasses.replace(bench.extractor, weights_hash="0" * 64)
    with pytest.raises(UserError, match="another extractor"):
        metric_identity(other, bench.reference, 10, "balanced")
    images, train = to_uint8(bench.heldout.images), to_uint8(bench.train.images)
    with pytest.raises(UserError, match="another extractor"):
        evaluate_images(images, bench.heldout.labels, other, *bench.references, train)


def test_scores_order_heldout_noisy_and_collapsed_images(bench):
    rng = np.random.default_rng(0)
    heldout = bench.evaluate(bench.heldout.images)
    assert heldout.keys() == KEYS
    assert heldout["fid_heldout"] == pytest.approx(0, abs=1e-6)
    assert heldout["precision"] > 0.8
    assert heldout["recall"] > 0.8
    noise = rng.standard_normal(bench.heldout.images.shape)
    noisy = [bench.evaluate(bench.heldout.images + level * noise) for level in (0.2, 0.4, 0.8)]
    for key in ("fid", "kid", "nn_distance"):
        values = [heldout[key], *(scores[key] for scores in noisy)]
        assert values == sorted(values)
    one_class = bench.evaluate(bench.train.images[bench.train.labels == 3])
    assert one_class["is"] < 0.3 * heldout["is"]
    assert one_class["recall"] < 0.2
    assert one_class["fid"] > 10 * heldout["fid"]


def test_the_uncertainty_of_fid_is_measured_where_it_is_asked_for(bench):
    images, labels, train = to_uint8(bench.heldout.images), bench.heldout.labels, to_uint8(bench.train.images)
    arguments = (images, labels, bench.extractor, *bench.references, train)
    scores = evaluate_images(*arguments, uncertainty=True, fid_parts=[2])
    assert scores.keys() == KEYS | {"fid_folds", "fid_log_se", "fid_by_n", "fid_infinity"}
    assert scores == evaluate_images(*arguments) | {key: scores[key] for key in scores.keys() - KEYS}
    assert len(scores["fid_folds"]) == 10
    assert scores["fid_by_n"].keys() == {len(images) // 2, len(images)}
    assert scores["fid_by_n"][len(images)] == pytest.approx(scores["fid"], rel=1e-6)
    assert scores["fid_infinity"] < scores["fid"] < np.mean(scores["fid_folds"])
    assert 0.01 < scores["fid_log_se"] < 0.5
    with pytest.raises(UserError, match="at least 2 samples"):
        evaluate_images(*(x[:15] for x in arguments[:2]), *arguments[2:], uncertainty=True, fid_parts=[10])


def test_memorised_images_have_distance_zero_and_heldout_images_do_not(bench, floors):
    assert bench.evaluate(bench.train.images[:300])["nn_distance"] == 0
    for floor in floors:
        assert floor.keys() == KEYS | {"fid_std", "nn_distance_heldout"}
        assert floor["nn_distance"] == 0
        assert floor["nn_distance_heldout"] == bench.evaluate(bench.heldout.images)["nn_distance"] > 1


def test_class_distance_is_that_of_the_features_within_classes(bench):
    features, labels = bench.references[1].features, bench.heldout.labels
    scores = bench.evaluate(bench.heldout.images, labels)
    assert scores["class_distance"] == pytest.approx(np.mean([pdist(features[labels == c]).mean() for c in range(10)]))
    assert scores["class_distance"] < 0.7 * bench.evaluate(bench.heldout.images)["class_distance"]
    averages = np.stack([bench.heldout.images[labels == c].mean(axis=0) for c in range(10)])
    blurred = 0.5 * bench.heldout.images + 0.5 * averages[labels]
    assert bench.evaluate(blurred, labels)["class_distance"] < 0.9 * scores["class_distance"]


def test_the_class_distance_of_real_data_pairs_no_image_with_itself(bench, floors):
    features, labels = bench.reference.features, bench.train.labels
    expected = np.mean([pdist(features[labels == c]).mean() for c in range(10)])
    assert [floor["class_distance"] for floor in floors] == pytest.approx([expected] * 4)
    scores = bench.evaluate(bench.train.images, labels)
    assert scores["class_distance"] == pytest.approx(expected)


def test_labels_that_are_not_one_an_image_are_refused(bench):
    with pytest.raises(UserError, match=r"labels must be \(179,\)"):
        bench.evaluate(bench.heldout.images, bench.heldout.labels[:-1])


def test_the_floor_is_the_expected_fid_of_n_draws(bench, floors):
    # Second-order expansion of the Frechet distance around equality, in the eigenbasis of the covariance:
    # n E[FID] = sum_i l_i + 1/2 sum_ij Var(g_i g_j) / (l_i + l_j), g the centred features.
    features = bench.reference.features - bench.reference.features.mean(axis=0)
    eigenvalues, basis = np.linalg.eigh(features.T @ features / len(features))
    g = features @ basis
    variances = (g**2).T @ g**2 / len(g) - np.diag(eigenvalues**2)
    expected = (eigenvalues.sum() + 0.5 * (variances / np.add.outer(eigenvalues, eigenvalues)).sum()) / 1000
    assert np.mean([floor["fid"] for floor in floors]) == pytest.approx(expected, rel=0.1)


def test_the_floor_depends_on_its_seed_alone(bench, floors):
    assert bench.floor(1000, seed=0) == floors[0]
    assert len({floor["fid"] for floor in floors}) == len(floors)


@pytest.mark.parametrize("bad", [np.zeros((20, 1, 8, 8), np.float32), np.zeros((20, 3, 8, 8), np.uint8)])
def test_images_of_another_kind_are_refused_by_name(bench, bad):
    good = to_uint8(bench.train.images)
    for images, train, name in ((bad, good, "images"), (good, bad, "train_images")):
        with pytest.raises(UserError, match=f"^{name} must be uint8"):
            evaluate_images(images, np.zeros(len(images)), bench.extractor, *bench.references, train)


def test_too_few_images_are_refused(bench):
    with pytest.raises(UserError, match="at least 10 samples"):
        bench.evaluate(bench.heldout.images[:5])
