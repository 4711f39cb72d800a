"""Intervals are those of scipy's t-tests; a pooled deviation has the degrees of freedom of its spread."""

import numpy as np
import pytest
from scipy import stats

from harness.reporting.intervals import (
    holm,
    pooled_sd,
    t_interval,
    t_test,
    welch_half_width,
)

A, B = np.array([0.3, 0.1, 0.4, 0.2]), np.array([1.0, 1.5, 1.1])


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_are_those_of_t_tests(level: float) -> None:
    one = stats.ttest_1samp(A, 0).confidence_interval(level)
    assert t_interval(A.tolist(), level) == pytest.approx((one.low, one.high))
    welch = stats.ttest_ind(A, B, equal_var=False).confidence_interval(level)
    assert welch_half_width(A, B, level) == pytest.approx((welch.high - welch.low) / 2)
    assert welch_half_width(np.ones(3), np.ones(2), level) == 0, "equal values, no spread"


def test_p_values_are_those_of_t_tests() -> None:
    expected = stats.ttest_1samp(A, 0).pvalue
    assert t_test(A.mean(), A.var(ddof=1) / len(A), len(A) - 1) == pytest.approx(expected)
    assert (t_test(0.0, 0.0, 3), t_test(0.5, 0.0, 3)) == (1.0, 0.0)


def test_the_pooled_deviation_is_that_of_an_analysis_of_variance() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3))
    sd, _ = pooled_sd(values)
    between = stats.f_oneway(*values.T).statistic * sd**2  # F is the mean square between over that within
    assert between == pytest.approx(4 * values.mean(axis=0).var(ddof=1))


def test_the_degrees_of_freedom_are_those_of_the_pooled_variances_spread() -> None:
    """A variance with f degrees of freedom has the squared coefficient of variation 2 / f (Satterthwaite 1946)."""
    column = np.arange(5.0)[:, None] ** 2
    assert pooled_sd(np.hstack([column, 1 - column, column]))[1] == pytest.approx(4), "they move together"
    assert pooled_sd(np.ones((5, 2))) == (0, 4)
    rng, n = np.random.default_rng(0), 400
    mixing = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.3, 0.2, 1.5]])
    draws = [pooled_sd(rng.normal(size=(n, 3)) @ mixing.T) for _ in range(2000)]
    variances, freedoms = np.array([sd**2 for sd, _ in draws]), [freedom for _, freedom in draws]
    spread = 2 * variances.mean() ** 2 / variances.var(ddof=1)
    assert np.mean(freedoms) == pytest.approx(spread, rel=4 * np.sqrt(2 / len(draws)))


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.1, 6)
        order, rejected = np.argsort(p), set()
        for rank, place in enumerate(order):  # the definition: stop at the first that is not rejected
            if p[place] > 0.05 / (6 - rank):
                break
            rejected.add(place)
        assert {i for i, q in enumerate(holm(p.tolist())) if q <= 0.05} == rejected
