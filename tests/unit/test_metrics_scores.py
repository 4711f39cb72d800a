"""Each score against its definition, re-derived in float64 NumPy by brute force."""

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import rel_entr, softmax

from harness.errors import UserError
from harness.metrics import scores
from harness.metrics.images import from_uint8


def normal(n, d=5, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def mmd2(x, y):
    """Unbiased estimate, as two double sums over pairs (Gretton et al. 2012, eq. 3)."""

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    def within(rows):
        pairs = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return np.mean(pairs)

    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kid_of_small_sets_is_the_unbiased_mmd():
    x, y = normal(30), normal(30, shift=0.5, seed=1)
    mean, deviation = scores.kid(x, y)  # each subset is the whole set
    assert mean == pytest.approx(mmd2(x, y), rel=1e-10)
    assert deviation < 1e-10


def test_kid_of_large_sets_agrees_with_the_whole_sets():
    n = 800
    x, y = normal(n), normal(n, shift=0.3, seed=1)
    gram_x, gram_y, gram_xy = ((a @ b.T / 5 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = sum((g.sum() - np.trace(g)) / (n * (n - 1)) for g in (gram_x, gram_y))
    mean, deviation = scores.kid(x, y)
    assert mean == pytest.approx(within - 2 * gram_xy.mean(), abs=4 * deviation / np.sqrt(scores.KID_SUBSETS))
    assert scores.kid(x, y) == (mean, deviation)


def test_precision_and_recall_equal_the_brute_force():
    generated, reference = normal(80, d=2), normal(80, d=2, shift=0.7, seed=1)

    def inside(points, centres):
        radii = np.sort(cdist(centres, centres), axis=1)[:, 3]  # column 0 is the point itself
        return np.mean([np.any(np.linalg.norm(centres - p, axis=1) <= radii) for p in points])

    precision, recall = scores.precision_recall(generated, reference)
    assert precision == pytest.approx(inside(generated, reference))
    assert recall == pytest.approx(inside(reference, generated))
    assert precision != recall


def test_precision_and_recall_do_not_depend_on_the_order_of_classes():
    centres = np.arange(10)[:, None] * np.array([20.0, 0])
    reference = normal(500, d=2) + centres[np.arange(500) % 10]
    by_class = normal(4000, d=2, seed=1) + centres[np.arange(4000) // 400]
    precision, recall = scores.precision_recall(by_class, reference)
    assert precision > 0.8
    assert recall > 0.8  # the first 500 rows alone hold two classes: 0.2


def test_copies_lie_within_balls_of_radius_zero():
    rows = np.repeat(normal(60, d=64, shift=1e3), 5, axis=0)  # four copies beside each: the third neighbour is one
    shuffled = np.random.default_rng(0).permutation(rows)
    assert scores.precision_recall(rows, shuffled) == (1, 1)
    assert scores.precision_recall(rows, shuffled + 1e-6) == (0, 0)


def test_precision_falls_for_poor_images_and_recall_for_missing_modes():
    reference = np.concatenate([normal(200), normal(200, shift=10, seed=1)])
    poor = scores.precision_recall(normal(400, seed=2) * 4 + 5, reference)
    missing = scores.precision_recall(normal(400, seed=3), reference)
    assert poor[0] < 0.2
    assert missing[0] > 0.8
    assert missing[1] == pytest.approx(0.5, abs=0.1)


def test_inception_score_equals_its_definition():
    logits = 2 * normal(1003, d=10)
    shuffled = softmax(logits[np.random.RandomState(scores.SEED).permutation(1003)], axis=1)
    bounds = [i * 1003 // 10 for i in range(11)]
    splits = [shuffled[a:b] for a, b in itertools.pairwise(bounds)]
    expected = [np.exp(rel_entr(p, p.mean(axis=0)).sum(axis=1).mean()) for p in splits]
    assert scores.inception_score(logits) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-10)


def test_inception_score_spans_one_to_the_number_of_classes():
    certain = np.eye(10)[np.arange(10_000) % 10] * 50
    assert scores.inception_score(certain)[0] == pytest.approx(10, rel=0.01)
    assert scores.inception_score(np.tile(certain[:1], (100, 1)))[0] == pytest.approx(1)


def test_nearest_neighbour_distance_equals_the_brute_force():
    rng = np.random.default_rng(0)
    images, train = (rng.integers(0, 256, (n, 2, 3, 3), dtype=np.uint8) for n in (1203, 50))
    flat = [from_uint8(x).reshape(len(x), -1) for x in (images, train)]
    assert scores.nearest_neighbour_distance(images, train) == pytest.approx(cdist(*flat).min(axis=1).mean(), rel=1e-12)


def test_nearest_neighbour_distance_of_copies_is_exactly_zero():
    train = np.random.default_rng(0).integers(0, 256, (50, 3, 16, 16), dtype=np.uint8)
    assert scores.nearest_neighbour_distance(train[[3, 3, 7]], train) == 0
    one_level = train.copy()
    one_level[:, 0, 0, 0] ^= 1
    assert scores.nearest_neighbour_distance(one_level, train) == pytest.approx(1 / 127.5)


def test_class_distance_equals_the_brute_force():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 2, 3, 7], [1100, 40, 2, 1]))  # more than one block; a class without a pair
    features = normal(len(labels)) * (1 + labels)[:, None]

    def mean(rows):
        return np.mean([np.linalg.norm(a - b) for a, b in itertools.combinations(rows, 2)])

    expected = np.mean([mean(features[labels == label]) for label in (0, 2, 3)])
    assert scores.class_distance(features, labels) == pytest.approx(expected, rel=1e-10)


def test_class_distance_keeps_the_digits_of_near_copies():
    rows = np.tile(1e3 + np.array([[0.0, 0.0], [3e-7, 4e-7]]), (30, 1))
    assert scores.class_distance(rows, np.zeros(60)) == pytest.approx(30 / 59 * 5e-7, rel=1e-5)


def test_class_distance_does_not_depend_on_the_size_or_the_balance_of_classes():
    centres = np.array([0.0, 100.0])
    few, many = (np.arange(n) % 2 for n in (1000, 4000))
    unequal = (np.arange(3000) % 3 == 0).astype(int)
    values = [
        scores.class_distance(normal(len(labels), seed=i) * (1 + labels)[:, None] + centres[labels, None], labels)
        for i, labels in enumerate((few, many, unequal))
    ]
    assert values == pytest.approx([values[0]] * 3, rel=0.03)


def test_global_random_states_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    scores.kid(normal(20), normal(20))
    scores.inception_score(normal(20))
    scores.precision_recall(normal(30), normal(20))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.inception_score(normal(9)), "inception score: needs at least 10 samples, not 9"),
        (lambda: scores.kid(normal(1), normal(9)), "kernel distance: needs at least 2"),
        (lambda: scores.precision_recall(normal(9), normal(3)), "precision and recall: needs at least 4"),
        (
            lambda: scores.class_distance(normal(9), np.arange(9)),
            "largest class: needs at least 2 samples, not 1",
        ),
    ],
)
def test_too_few_samples_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
