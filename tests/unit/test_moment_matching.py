"""Moment matching's draws: the times of both schedules, and the three transitions."""

import numpy as np
import pytest
from scipy import stats

from harness.diffusion import CosineClock
from harness.moment_matching import AlternatingMomentMatching, MomentMatchingOptions
from harness.noise import Noise
from harness.samplers import FAMILIES
from tests.conftest import SPEC

COUNT = 20_000
STEPS = [1, 2, 3, 7, 8, 64]


def make(k: int, **options: str) -> AlternatingMomentMatching:
    return AlternatingMomentMatching(k, 100, CosineClock(), MomentMatchingOptions(**options), SPEC)


def times(k: int, schedule: str) -> tuple[np.ndarray, np.ndarray]:
    draws = make(k, times=schedule).draw(Noise(0), 3, 0, COUNT)
    assert draws["s"].dtype == draws["t"].dtype == np.float32
    return draws["s"].astype(np.float64), draws["t"].astype(np.float64)


@pytest.mark.parametrize("schedule", ["continuous", "discrete"])
@pytest.mark.parametrize("k", STEPS)
def test_steps_are_at_most_one_kth_and_inside_the_clock(k: int, schedule: str) -> None:
    s, t = times(k, schedule)
    assert s.min() >= 0
    assert t.max() <= 1
    assert np.all(t >= s)
    assert np.all(t - s <= 1 / k + 1e-7)


@pytest.mark.parametrize("k", STEPS)
def test_continuous_times(k: int) -> None:
    """s is uniform; t - s is uniform on [0, 1/k] and independent of s, wherever t is not cut at 1."""
    s, t = times(k, "continuous")
    assert stats.kstest(s, "uniform").pvalue > 0.01
    whole = s < 1 - 1 / k
    if whole.any():
        delta = k * (t - s)[whole]
        assert stats.kstest(delta, "uniform").pvalue > 0.01
        assert abs(np.corrcoef(delta, s[whole])[0, 1]) < 4 / whole.sum() ** 0.5
    cut = (t == 1).mean()
    assert abs(cut - 1 / (2 * k)) < 4 * (cut / COUNT) ** 0.5  # P(s + U / k > 1) = 1 / 2k


@pytest.mark.parametrize("k", STEPS)
def test_discrete_times(k: int) -> None:
    """t is one of the sampler's own k times, each as likely, and s uniform on [t - 1/k, t], so on [0, 1] overall."""
    s, t = times(k, "discrete")
    values, counts = np.unique(t, return_counts=True)
    np.testing.assert_allclose(values, np.sort(AlternatingMomentMatching.times(k)), rtol=1e-7)
    assert np.abs(counts - COUNT / k).max() <= 4.5 * (COUNT / k) ** 0.5
    assert stats.kstest(k * (t - s), "uniform").pvalue > 0.01
    assert stats.kstest(s, "uniform").pvalue > 0.01


@pytest.mark.parametrize("word", [0, 2**64 - 1])
@pytest.mark.parametrize("schedule", ["continuous", "discrete"])
@pytest.mark.parametrize("k", STEPS)
def test_extreme_draws_stay_inside(k: int, schedule: str, word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def words(self: Noise, purpose: str, step: int, start: int, count: int, words: int) -> np.ndarray:
        return np.full((count, words), word, np.uint64)

    monkeypatch.setattr(Noise, "_words", words)
    draws = make(k, times=schedule).draw(Noise(0), 0, 0, 1)
    assert 0 <= draws["s"][0] <= draws["t"][0] <= 1
    assert schedule == "continuous" or draws["t"][0] in np.arange(1, k + 1, dtype=np.float32) / k


def test_the_noises_of_z_t_and_z_s_are_independent() -> None:
    draws = make(4).draw(Noise(0), 0, 0, COUNT)
    assert abs(np.mean(draws["eps_t"] * draws["eps_s"])) < 4 / draws["eps_t"].size ** 0.5


def test_turns_alternate_from_the_auxiliary() -> None:
    assert [make(4).turn(step) for step in range(4)] == ["auxiliary", "student"] * 2


@pytest.mark.parametrize(
    ("transition", "family", "sampler"),
    [("posterior", "ancestral", "ancestral"), ("unconditional", "ancestral", "renoise"), ("ddim", "ddim", "ddim")],
)
def test_students_train_on_a_samplers_transition(transition: str, family: str, sampler: str) -> None:
    """Each transition is a sampler family's; conditional or not in training, Algorithm 1 samples."""
    method = make(4, transition=transition)
    assert method.family(method.options) == family
    draws = method.draw(Noise(0), 0, 0, 100)
    z, x = (Noise(1).normal(name, 0, 0, 100, (1, 4, 4)) for name in ("z", "x"))
    t, s = method.clock(draws["t"]), method.clock(draws["s"])
    np.testing.assert_array_equal(method.transition(z, x, draws), FAMILIES[sampler](z, x, t, s, draws["eps_s"]))
