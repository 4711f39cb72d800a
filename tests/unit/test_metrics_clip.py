"""CMMD and the CLIP score against their definitions."""

import numpy as np
import pytest

from harness.errors import UserError
from harness.metrics.clip import clip_score, cmmd


def normal(n, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 6)) + shift


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1)[:, None]


def test_cmmd_is_the_biased_mmd_of_normalised_features():
    x, y = normal(1100), 3 * normal(1040, shift=0.3, seed=1)  # more than one block of each

    def mean_kernel(a, b):
        distances = ((unit(a)[:, None] - unit(b)[None]) ** 2).sum(axis=2)
        return np.exp(-distances / (2 * 10.0**2)).mean()

    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-8)
    assert cmmd(x, y) == pytest.approx(cmmd(y, x), rel=1e-12)


def test_cmmd_of_a_set_with_itself_is_zero_and_grows_with_the_shift():
    x = normal(200)
    values = [cmmd(x, x), *(cmmd(x, normal(200, shift, seed=1)) for shift in (0.0, 0.5, 1.0))]
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert values == sorted(values)
    assert cmmd(x, 7 * x) == pytest.approx(0, abs=1e-12)


def test_clip_score_is_a_hundred_times_the_mean_cosine():
    images, texts = normal(5), normal(5, seed=1)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(images, texts, strict=True)]
    assert clip_score(images, texts) == pytest.approx(100 * np.mean(cosines))
    assert min(cosines) < 0  # counted as they are
    assert clip_score(images, 2 * images) == pytest.approx(100)


def test_sides_without_partners_are_refused():
    with pytest.raises(UserError, match="2 captions for 3 images"):
        clip_score(normal(3), normal(2))
    with pytest.raises(UserError, match="CMMD: needs images"):
        cmmd(normal(3), normal(0))
