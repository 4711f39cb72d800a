"""Conditions by number: rows of captions and of classes, and what evaluated images are drawn for, in turn."""

from pathlib import Path

import numpy as np
import pytest

from harness.conditions import Text
from harness.errors import UserError
from harness.prompts import BALANCED, Captions, Prompts, class_prompts, rows_of, text_width
from harness.text_encoders.table import TextTable

IDENTITY = {"encoder": "some", "encoder_weights": "1" * 64, "captions_digest": "2" * 64}
TABLE = TextTable(
    tokens=np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float16),
    mask=np.array([[True, True], [True, False], [False, False]]),
    index=np.array([1, 1, 0, 2, 0]),
    identity=IDENTITY,
)
"""Three different captions of five images."""
EVERY = Captions(TABLE, np.arange(5))


def assert_captions(found: Text, captions: list[int]) -> None:
    """The features of these different captions, in float32."""
    assert isinstance(found, Text)
    assert found.tokens.dtype == np.float32
    np.testing.assert_array_equal(found.tokens, TABLE.tokens[captions])
    np.testing.assert_array_equal(found.mask, TABLE.mask[captions])


def test_a_row_of_captions_is_that_of_its_image() -> None:
    assert len(EVERY) == 5
    assert_captions(EVERY[np.arange(5)], [1, 1, 0, 2, 0])
    assert_captions(EVERY[np.array([4, 3, 4])], [0, 2, 0])
    assert_captions(Captions(TABLE, np.array([3, 0]))[np.array([1, 1, 0])], [1, 1, 2])


def test_rows_of_rows_are_counted_in_what_is_left() -> None:
    some = rows_of(EVERY, [3, 2, 3, 1])
    assert len(some) == 4
    assert_captions(some[np.arange(4)], [2, 0, 2, 1])
    assert_captions(rows_of(some, np.array([1]))[np.arange(1)], [0])
    np.testing.assert_array_equal(rows_of(np.array([7, 8, 9]), [2, 2, 0]), [9, 9, 7])


def test_the_width_of_a_token_is_that_of_captions_alone() -> None:
    assert text_width(EVERY) == 8
    assert text_width(np.arange(3)) == 0


def test_classes_come_in_turn_and_again() -> None:
    given = class_prompts(3)
    assert given.policy == BALANCED
    np.testing.assert_array_equal(given.condition(0, 7), [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(given.labels[given.rows(0, 7)], given.condition(0, 7))
    parts = [given.condition(start, 2) for start in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), given.condition(0, 6))


def test_captions_come_in_turn_and_again_with_the_labels_of_their_images() -> None:
    given = Prompts("some policy", EVERY, np.array([5, 6, 7, 8, 9]))
    assert_captions(given.condition(3, 4), [2, 0, 1, 1])
    np.testing.assert_array_equal(given.labels[given.rows(3, 4)], [8, 9, 5, 6])


def test_features_of_other_weights_than_a_network_was_trained_with_are_refused() -> None:
    EVERY.require("1" * 64, Path("student.safetensors"))
    for weights in ("3" * 64, None):
        with pytest.raises(UserError, match=r"^student\.safetensors: was trained with other weights of the text enc"):
            EVERY.require(weights, Path("student.safetensors"))
