"""The jackknife's error against the spread of many independent draws, and FID's limit against its closed form."""

import numpy as np
import pytest

from harness.metrics.config import PARTS
from harness.metrics.folds import FOLDS, fold_of, jackknife_se
from harness.metrics.sampling_error import (
    fid_against_n,
    fid_at_infinity,
    fids_without_each_fold,
    fold_moments,
    merged,
)
from harness.metrics.scores import fid
from harness.metrics.statistics import Moments
from tests.oracle.test_statistics import moments, rows_with


def gaussians(d: int, shift: float, scale: float) -> tuple[Moments, np.ndarray, np.ndarray, float]:
    """A standard normal reference, another Gaussian's mean and deviations (d,), and their closed-form distance."""
    reference = moments(rows_with(np.zeros(d), np.eye(d), n=4 * d))
    mean, sd = np.full(d, shift / np.sqrt(d)), np.linspace(1, scale, d)
    return reference, mean, sd, float((mean**2).sum() + ((sd - 1) ** 2).sum())


def draw(rng: np.random.Generator, mean: np.ndarray, sd: np.ndarray, n: int) -> np.ndarray:
    return mean + sd * rng.standard_normal((n, len(mean)))


@pytest.mark.parametrize(
    ("d", "n", "shift", "scale", "least_bias", "limits"),
    [
        (6, 400, 0.5, 1.5, 0.0, (0.85, 1.2)),
        (6, 403, 0.5, 1.5, 0.0, (0.85, 1.2)),  # folds of unequal size
        (24, 300, 0.3, 1.2, 5.0, (1.0, 1.4)),  # bias: many standard errors, and not counted as error
        (6, 400, 0.0, 1.0, 3.0, (1.4, 2.1)),  # FID is nothing but bias: overstated, as documented
    ],
)
def test_the_jackknife_gives_the_variance_over_independent_draws(
    d: int, n: int, shift: float, scale: float, least_bias: float, limits: tuple[float, float]
) -> None:
    rng = np.random.default_rng(0)
    reference, mean, sd, limit = gaussians(d, shift, scale)
    fids, variances = [], []
    for _ in range(600):
        folds = fold_moments(draw(rng, mean, sd, n), np.arange(n) % 3)
        fids.append(fid(merged(folds), reference))
        variances.append(jackknife_se(np.log(fids_without_each_fold(folds, reference))) ** 2)
    low, high = limits
    assert low < np.mean(variances) / np.var(np.log(fids), ddof=1) < high
    assert np.mean(fids) - limit > least_bias * np.std(fids)


def test_the_paired_jackknife_gives_the_variance_of_the_ratio_of_two_methods_on_one_noise() -> None:
    rng = np.random.default_rng(0)
    d, n = 6, 400
    reference, mean, sd, _ = gaussians(d, 0.5, 1.5)
    ratios, variances, unpaired = [], [], []
    for _ in range(400):
        noise = rng.standard_normal((n, d))
        folds = [fold_moments(m + s * noise, np.zeros(n)) for m, s in ((mean, sd), (1.1 * mean, 1.05 * sd))]
        ratios.append(np.log(fid(merged(folds[0]), reference) / fid(merged(folds[1]), reference)))
        logs = [np.log(fids_without_each_fold(side, reference)) for side in folds]
        variances.append(jackknife_se(logs[0] - logs[1]) ** 2)
        unpaired.append(sum(jackknife_se(side) ** 2 for side in logs))
    assert 0.8 < np.mean(variances) / np.var(ratios, ddof=1) < 1.3
    assert np.mean(variances) < 0.1 * np.mean(unpaired), "what the noise does to both has cancelled"


def test_the_limit_of_infinitely_many_images_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    reference, mean, sd, limit = gaussians(16, 0.3, 1.1)
    found = [
        fid_against_n(fold_moments(draw(rng, mean, sd, 4000), np.zeros(4000)), reference, PARTS) for _ in range(60)
    ]
    assert list(found[0]) == [400, 800, 2000, 4000]
    limits = np.array([fid_at_infinity(by_n) for by_n in found])
    assert limits.mean() == pytest.approx(limit, abs=4 * limits.std(ddof=1) / np.sqrt(len(limits)))
    biases = {n: np.mean([by_n[n] for by_n in found]) - limit for n in found[0]}
    assert abs(limits.mean() - limit) < 0.1 * biases[4000], "most of the bias is gone"
    assert biases[400] / biases[4000] == pytest.approx(10, rel=0.15), "it falls as 1 / n"


def test_without_each_fold_is_the_distance_of_the_other_images() -> None:
    rng = np.random.default_rng(1)
    reference, mean, sd, _ = gaussians(5, 0.3, 1.2)
    features, labels = draw(rng, mean, sd, 103), rng.integers(0, 4, 103)
    fold = fold_of(labels)
    folds = fold_moments(features, labels)
    expected = [fid(moments(features[fold != j]), reference) for j in range(FOLDS)]
    np.testing.assert_allclose(fids_without_each_fold(folds, reference), expected, rtol=1e-9)
    by_n = fid_against_n(folds, reference, [2])
    assert by_n.keys() == {103, 51}
    halves = [fid(moments(features[fold % 2 == side]), reference) for side in (0, 1)]
    assert by_n == pytest.approx({103: fid(moments(features), reference), 51: np.mean(halves)}, rel=1e-9)


@pytest.mark.parametrize("labels", [np.arange(500) % 10, np.repeat(np.arange(7), 30), np.zeros(25), np.arange(40)])
def test_folds_have_equally_many_of_each_class_and_are_those_of_the_index(labels: np.ndarray) -> None:
    fold = fold_of(labels)
    counts = np.array([np.bincount(fold[labels == c], minlength=FOLDS) for c in np.unique(labels)])
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    assert np.ptp(counts.sum(axis=0)) <= 1
    np.testing.assert_array_equal(fold_of(labels.copy()), fold)
