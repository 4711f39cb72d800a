"""Addressed streams: addressing, distribution, independence, and the transforms against scipy."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from harness.noise import BLOCK, Noise, _key, _unit_circle

NOISE = Noise(0)
SHAPES = [
    (),
    (1,),
    (3,),
    (1, 8, 8),
    (1000,),
    (2 * BLOCK + 6,),
]  # the last two in blocks of samples, and larger than a block
KINDS = ["uniform", "normal"]


def draw(
    kind: str, seed: int = 0, purpose: str = "p", step: int = 0, start: int = 0, count: int = 40,
    shape: tuple[int, ...] = (),
) -> np.ndarray:  # fmt: skip
    return getattr(Noise(seed), kind)(purpose, step, start, count, shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_split_of_a_batch_gives_the_same_values(kind: str, shape: tuple[int, ...]) -> None:
    whole = draw(kind, shape=shape)
    assert (whole.shape, whole.dtype) == ((40, *shape), np.float32)
    for cuts in ([0, 7, 14, 40], [0, 1, 39, 40]):
        parts = [draw(kind, start=a, count=b - a, shape=shape) for a, b in pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_purpose_step_and_index_each_give_other_values(kind: str) -> None:
    draws = [draw(kind), draw(kind, seed=1), draw(kind, purpose="q"), draw(kind, step=1), draw(kind, start=40)]
    values = np.concatenate(draws)
    assert len(np.unique(values)) == len(values)
    np.testing.assert_array_equal(draw(kind), draws[0])


def test_a_number_in_the_purpose_is_not_a_seed() -> None:
    """(1, "2p") and (12, "p") and the like are other streams."""
    addresses = [(1, "2p"), (1, "2/p"), (12, "p"), (1, "p/2"), (2, "p/1"), (0, ""), (0, "/")]
    first = {Noise(seed).uniform(purpose, 0, 0, 1).item() for seed, purpose in addresses}
    assert len(first) == len(addresses)


@pytest.mark.parametrize("by", ["sample", "step"])
def test_uniform_and_normal_pass_kolmogorov_smirnov(by: str) -> None:
    if by == "sample":
        uniform, normal = NOISE.uniform("u", 0, 0, 100_000), NOISE.normal("n", 0, 0, 100_000)
    else:
        uniform = np.concatenate([NOISE.uniform("u", step, 0, 1) for step in range(3000)])
        normal = np.concatenate([NOISE.normal("n", step, 0, 1) for step in range(3000)])
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert stats.kstest(normal, "norm").pvalue > 0.01


def test_moments() -> None:
    x = NOISE.normal("moments", 0, 0, 50_000, (4,)).astype(np.float64)
    count = x.size
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:  # Var x^p = E x^2p - (E x^p)^2
        assert abs((x**power).mean() - moment) < 4 * (variance / count) ** 0.5
    u = NOISE.uniform("moments", 0, 0, count).astype(np.float64)
    assert abs(u.mean() - 1 / 2) < 4 * (1 / 12 / count) ** 0.5
    assert abs(u.var() - 1 / 12) < 4 * (1 / 180 / count) ** 0.5


def test_neighbours_are_uncorrelated() -> None:
    """Samples, steps, seeds and elements, also in their squares (a Box-Muller pair shares its radius)."""
    x = NOISE.normal("p", 0, 0, 40_000, (4,)).astype(np.float64)
    others = [NOISE.normal("p", 1, 0, 40_000, (4,)), Noise(1).normal("p", 0, 0, 40_000, (4,)), np.roll(x, 1, axis=0)]
    others += [np.roll(x, shift, axis=1) for shift in (1, 2)]
    bound = 4.5 / x.size**0.5
    for other in others:
        assert abs(np.mean(x * other)) < bound
        assert abs(np.mean((x**2 - 1) * (other**2 - 1))) / 2 < bound


def raw_words(seed: int, purpose: str, step: int, index: int, words: int) -> np.ndarray:
    """One sample's words from NumPy's generator, advanced to its place."""
    blocks = -(-words // 4)
    stream = np.random.Philox(key=np.array(_key(seed, purpose), dtype=np.uint64), counter=[0, 0, step, 0])
    return stream.advance(index * blocks).random_raw(words)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_normals_are_rayleigh_radii_at_uniform_angles(size: int) -> None:
    words = raw_words(3, "p", 5, 11, -(-size // 2))
    radius = stats.rayleigh.isf((np.array([int(w) >> 32 for w in words]) + 0.5) / 2**32)
    pairs = radius * np.exp(2j * np.pi * np.array([int(w) % 2**32 for w in words]) / 2**32)
    expected = np.stack([pairs.real, pairs.imag], axis=1).ravel()[:size]
    np.testing.assert_allclose(Noise(3).normal("p", 5, 11, 1, (size,))[0], expected, rtol=1e-5, atol=1e-6)


def test_points_of_the_unit_circle_are_exact_to_rounding() -> None:
    edges = [k * 2**22 + offset for k in (0, 1, 511, 1023) for offset in (0, 1, 2**21, 2**22 - 1)]
    turns = np.append(edges, np.random.default_rng(0).integers(2**32, size=100_000))
    expected = np.exp(2j * np.pi * turns / 2**32)
    np.testing.assert_allclose(_unit_circle(turns), expected, rtol=0, atol=8 * np.finfo(float).eps)


def test_uniforms_are_the_top_bits() -> None:
    expected = [(int(word) >> 40) / 2**24 for word in raw_words(3, "p", 5, 11, 9)]
    np.testing.assert_array_equal(Noise(3).uniform("p", 5, 11, 1, (9,))[0], expected)


@pytest.mark.parametrize("word", [0, 1, 2**32 - 1, 2**32, 2**64 - 2**32, 2**64 - 1])
def test_extreme_words_stay_in_range(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noise, "_words", lambda *_: np.full((1, 1), word, np.uint64))
    assert 0 <= NOISE.uniform("p", 0, 0, 1)[0] < 1
    assert np.all(np.abs(NOISE.normal("p", 0, 0, 1, (2,))) < 6.8)


def test_permutations_are_permutations_and_differ_by_epoch() -> None:
    orders = [NOISE.permutation("order", epoch, 1000) for epoch in range(4)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    agreements = [np.sum(a == b) for i, a in enumerate(orders) for b in [*orders[:i], np.arange(1000)]]
    assert max(agreements) < 8  # one in the mean
    np.testing.assert_array_equal(orders[0], Noise(0).permutation("order", 0, 1000))


def test_every_item_is_as_likely_in_every_place() -> None:
    counts = np.zeros((5, 5))
    for epoch in range(2000):
        counts[np.arange(5), NOISE.permutation("order", epoch, 5)] += 1
    assert np.abs(counts - 400).max() < 4.5 * (2000 * 0.2 * 0.8) ** 0.5
