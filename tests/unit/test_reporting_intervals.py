"""Intervals are those of scipy's t-tests; a prediction interval covers as often as it says."""

import numpy as np
import pytest
from scipy import stats

from harness.reporting.intervals import (
    holm,
    pooled_sd,
    prediction_interval,
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
    sd, freedom = pooled_sd([A, B, [7.0], []])
    assert freedom == 5
    between = stats.f_oneway(A, B).statistic * sd**2  # F is the mean square between over that within
    everything = np.concatenate([A, B])
    expected = sum(len(x) * (x.mean() - everything.mean()) ** 2 for x in (A, B))
    assert between == pytest.approx(expected)
    sd, freedom = pooled_sd([[1.0], [2.0]])
    assert np.isnan(sd)
    assert freedom == 0


def test_a_prediction_interval_covers_the_next_value_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    n, groups, hits, draws = 3, 4, 0, 4000
    for _ in range(draws):
        seen = rng.normal(size=(groups, n))
        sd, freedom = pooled_sd(seen)
        low, high = prediction_interval(float(seen[0].mean()), sd, n, freedom, 0.9)
        hits += low < rng.normal() < high
    assert hits / draws == pytest.approx(0.9, abs=4 * np.sqrt(0.9 * 0.1 / draws))


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
