"""The quantiser: exact levels, rounding to the nearest, clipping, and refusal of what is no image."""

import numpy as np
import pytest

from harness.errors import UserError
from harness.metrics.images import from_uint8, require_uint8, to_uint8


def column(values, dtype=np.float64):
    return np.array(values, dtype).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_level_survives_the_round_trip(dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(to_uint8(from_uint8(levels).astype(dtype)), levels)


def test_known_values_round_to_the_nearest_level_and_clip():
    x = column([-1, 1, 0, -5, 5, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 1 - 0.51 / 127.5])
    assert to_uint8(x).ravel().tolist() == [0, 255, 128, 0, 255, 0, 1, 254]


def test_values_within_half_a_level():
    x = np.random.default_rng(0).uniform(-1, 1, (100, 3, 4, 4))
    error = np.abs(from_uint8(to_uint8(x)) - x)
    assert error.max() <= 0.5 / 127.5 + 1e-12
    assert abs((from_uint8(to_uint8(x)) - x).mean()) < 1e-4  # a flooring quantiser is off by half a level, 4e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_images_are_counted_and_refused(bad):
    x = np.zeros((5, 1, 2, 2), np.float32)
    x[1, 0, 0, 0] = x[3, 0, 1, 1] = bad
    with pytest.raises(UserError, match="images: non-finite values in 2 of 5"):
        to_uint8(x)


@pytest.mark.parametrize("x", [np.zeros((2, 1, 2, 2), np.uint8), np.zeros((2, 4)), np.zeros((2, 1, 2, 2), int)])
def test_other_dtypes_and_shapes_are_refused(x):
    with pytest.raises(UserError, match="must be floating point"):
        to_uint8(x)


def test_eight_bit_images_are_required_by_name():
    require_uint8("samples", np.zeros((2, 1, 2, 2), np.uint8), (1, 2, 2))
    for bad in (np.zeros((2, 1, 2, 2)), np.zeros((2, 3, 2, 2), np.uint8), np.zeros((0, 1, 2, 2), np.uint8)):
        with pytest.raises(UserError, match=r"samples must be uint8 \(n, 1, 2, 2\)"):
            require_uint8("samples", bad, (1, 2, 2))
