"""Streaming moments against numpy.cov, and FID against closed forms of two Gaussians."""

import tracemalloc

import numpy as np
import pytest
from scipy.linalg import sqrtm

from harness.errors import UserError
from harness.metrics.scores import fid
from harness.metrics.statistics import Moments


def rows_with(mean, covariance, n=200, seed=0):
    """Rows whose sample mean and (unbiased) covariance are exactly those given."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(axis=0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False)))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def moments(rows):
    return Moments(rows.shape[1]).update(rows)


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3], [199], [50, 50, 120], list(range(1, 200))])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_any_batches_give_numpys_mean_and_covariance(cuts, offset):
    rows = np.random.default_rng(1).standard_normal((200, 6)) @ np.diag([1, 2, 0.1, 3, 0, 1]) + offset
    streamed = Moments(6)
    for batch in np.split(rows, cuts):
        streamed.update(batch)
    assert streamed.count == 200
    np.testing.assert_allclose(streamed.mean, rows.mean(axis=0), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(streamed.covariance, np.cov(rows, rowvar=False), rtol=1e-8, atol=1e-8 + 1e-15 * offset)


def test_merged_parts_equal_the_whole_and_empty_parts_change_nothing():
    rows = np.random.default_rng(2).standard_normal((90, 4)) + 5
    merged = Moments(4).merge(Moments(4)).merge(moments(rows[:20])).merge(Moments(4)).merge(moments(rows[20:]))
    np.testing.assert_allclose(merged.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(merged.covariance, np.cov(rows, rowvar=False), rtol=1e-12)


def test_float32_rows_accumulate_in_float64():
    rows = (np.random.default_rng(3).standard_normal((1000, 3)) + 100).astype(np.float32)
    np.testing.assert_allclose(moments(rows).covariance, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-11)


def test_memory_does_not_grow_with_the_number_of_rows():
    batch = np.random.default_rng(4).standard_normal((100, 32))
    streamed = Moments(32)
    tracemalloc.start()
    try:
        for _ in range(500):  # 12.8 MB of rows in all
            streamed.update(batch)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_rows_wrong_shapes_and_single_rows_are_refused(bad):
    with pytest.raises(UserError, match="features are not finite"):
        Moments(2).update(np.array([[0.0, bad]]))
    for shape in ((3,), (3, 3)):
        with pytest.raises(UserError, match="features must be"):
            Moments(2).update(np.zeros(shape))
    with pytest.raises(UserError, match="at least 2 samples"):
        _ = moments(np.zeros((1, 2))).covariance


def test_fid_of_commuting_gaussians_has_its_closed_form():
    m1, m2 = np.array([0.0, 1, 2, 3]), np.array([0.5, 1, 0, 3.25])
    s1, s2 = np.array([1.0, 2, 0.3, 0.7]), np.array([1.5, 2, 0.1, 4])
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    found = fid(moments(rows_with(m1, np.diag(s1**2))), moments(rows_with(m2, np.diag(s2**2), n=77, seed=5)))
    assert found == pytest.approx(expected, rel=1e-10)


def test_fid_of_two_dimensional_gaussians_that_do_not_commute_has_its_closed_form():
    c1, c2 = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[0.5, -0.4], [-0.4, 3.0]])
    product = c1 @ c2  # for 2x2: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))
    root_trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 1 + 4 + np.trace(c1) + np.trace(c2) - 2 * root_trace
    assert fid(moments(rows_with([0.0, 0.0], c1)), moments(rows_with([1.0, 2.0], c2))) == pytest.approx(expected)


@pytest.mark.parametrize("n", [300, 20])  # 20 rows of 32 dimensions: singular covariances
def test_fid_equals_the_matrix_square_root_in_float64(n):
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((n, 32)) @ rng.standard_normal((32, 32)), rng.standard_normal((n, 32)) + 0.2
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    ridge = 1e-12 * np.eye(32)
    root = np.real(sqrtm((ca + ridge) @ (cb + ridge)))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert fid(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)
    assert fid(moments(a), moments(a)) == pytest.approx(0, abs=1e-4 * np.trace(ca))
