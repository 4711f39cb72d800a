"""Intervals of claims are those of t-tests; verdicts follow from them, or from the agreement of backends."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.reporting.claims_evidence import (
    Estimate,
    Verdict,
    above,
    all_of,
    any_of,
    below,
    difference,
    over_teacher,
    within,
)


def test_intervals_are_those_of_t_tests():
    a, b = np.array([0.3, 0.1, 0.4, 0.2]), np.array([1.0, 1.5, 1.1])
    first, second = ({"jax": pd.Series(values, index=range(len(values)))} for values in (a, b))
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    estimate = difference(first, second)["jax"]
    assert (estimate.low, estimate.high) == pytest.approx((welch.low, welch.high))
    one = stats.ttest_1samp(a - 0.5, 0).confidence_interval(0.95)
    estimate = over_teacher(first, {"jax": pd.Series([0.5], index=[0])})["jax"]
    assert (estimate.low, estimate.high) == pytest.approx((one.low, one.high))
    paired = stats.ttest_rel(b, a[:3]).confidence_interval(0.95)
    estimate = over_teacher(second, first)["jax"]  # every seed has a teacher of its own
    assert (estimate.low, estimate.high) == pytest.approx((paired.low, paired.high))


def test_two_seeds_give_no_interval():
    series = [{"jax": pd.Series(values)} for values in ([0.0, 0.1, 0.2], [1.0, 1.1])]
    assert difference(*series)["jax"].half is None
    assert over_teacher(series[1], {"jax": pd.Series([0.0])})["jax"].half is None


def estimates(*pairs):
    return {str(i): Estimate(mean, half, "") for i, (mean, half) in enumerate(pairs)}


@pytest.mark.parametrize(
    ("given", "by_seeds", "verdict"),
    [
        ([(-1.0, 0.5), (2.0, None)], True, Verdict.HOLDS),  # the interval decides
        ([(-1.0, 0.5), (-1.0, 1.5)], True, Verdict.UNDECIDED),
        ([(1.0, 0.5)], False, Verdict.FAILS),
        ([(-9.0, None), (-9.0, None)], True, Verdict.UNDECIDED),  # one seed
        ([(-9.0, None), (-9.0, None)], False, Verdict.HOLDS),
        ([(-9.0, None), (9.0, None)], False, Verdict.UNDECIDED),
        ([(-0.23, None), (-0.21, None)], False, Verdict.UNDECIDED),  # a factor of 1.23 on the closer of the two
        ([(0.23, None), (0.24, None)], False, Verdict.FAILS),  # both beyond a factor of 1.25
        ([(-9.0, None)], False, Verdict.UNDECIDED),  # one run
        ([], False, Verdict.UNTESTED),
    ],
)
def test_what_lies_below(given, by_seeds, verdict):
    assert below(estimates(*given), by_seeds=by_seeds) is verdict
    mirrored = estimates(*((-mean, half) for mean, half in given))
    assert above(mirrored, by_seeds=by_seeds) is verdict
    shifted = estimates(*((mean + 3, half) for mean, half in given))
    assert below(shifted, 3.0, by_seeds=by_seeds) is verdict


def test_what_lies_within_a_margin():
    cases = {(0.1, 0.2): Verdict.HOLDS, (0.1, 0.5): Verdict.UNDECIDED, (-1.0, 0.2): Verdict.FAILS}
    cases |= {(0.4, 0.2): Verdict.UNDECIDED, (0.0, None): Verdict.UNDECIDED}
    for case, verdict in cases.items():
        assert within(estimates(case), 0.4) is verdict
    assert within({}, 0.4) is Verdict.UNTESTED


def test_parts_of_a_claim():
    holds, fails, undecided, untested = Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED, Verdict.UNTESTED
    assert [all_of(x) for x in ([], [holds], [holds, undecided], [untested, undecided], [untested, fails])] == [
        untested,
        holds,
        undecided,
        untested,
        fails,
    ]
    assert [any_of(x) for x in ([], [fails, untested], [fails, undecided], [fails, holds])] == [
        untested,
        fails,
        undecided,
        holds,
    ]
