"""Classes and captions as conditions: what selects, hides and removes them is the same for every array library."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from harness.conditions import Condition, Text, each, hidden, unconditional

Library = Callable[[np.ndarray], Any]
CLASSES = 5
LABELS = np.array([3, 0, 4, 2])
TEXT = Text(
    np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32),
    np.array([[True, True, True], [True, False, False], [False, False, False], [True, True, False]]),
)
HIDE = np.array([True, False, True, False])
each_library = pytest.mark.parametrize(
    "library", [np.asarray, torch.asarray, jnp.asarray], ids=["numpy", "torch", "jax"]
)


def in_library(condition: Condition, library: Library) -> Condition:
    return Text(*map(library, condition)) if isinstance(condition, Text) else library(condition)


def assert_same(found: Condition, expected: Condition, library: Library) -> None:
    """Equal values and types, in arrays of the same library."""
    parts = [(found, expected)]
    if isinstance(expected, Text):
        assert isinstance(found, Text)
        parts = list(zip(found, expected, strict=True))
    for a, b in parts:
        assert type(a) is type(library(b))
        assert np.asarray(a).dtype == np.asarray(library(b)).dtype
        np.testing.assert_array_equal(np.asarray(a), b)


@each_library
def test_each_selects_and_repeats_samples_of_either_kind(library: Library) -> None:
    rows = [2, 2, 0]
    for condition, expected in ((LABELS, LABELS[rows]), (TEXT, Text(TEXT.tokens[rows], TEXT.mask[rows]))):
        found = each(lambda array: array[library(np.array(rows))], in_library(condition, library))
        assert_same(found, expected, library)


@each_library
def test_unconditional_is_the_class_after_the_last_or_no_token(library: Library) -> None:
    assert_same(unconditional(in_library(LABELS, library), CLASSES), np.full(4, CLASSES), library)
    found = unconditional(in_library(TEXT, library), CLASSES)
    assert_same(found, Text(TEXT.tokens, np.zeros((4, 3), bool)), library)


@each_library
def test_hidden_ones_are_unconditional_and_the_others_as_they_were(library: Library) -> None:
    found = hidden(in_library(LABELS, library), library(HIDE), CLASSES)
    assert_same(found, np.array([CLASSES, 0, CLASSES, 2]), library)
    text = hidden(in_library(TEXT, library), library(HIDE), CLASSES)
    mask = np.array([[False] * 3, [True, False, False], [False] * 3, [True, True, False]])
    assert_same(text, Text(TEXT.tokens, mask), library)


@pytest.mark.parametrize("condition", [LABELS, TEXT], ids=["classes", "captions"])
def test_all_hidden_is_unconditional_and_none_hidden_is_the_condition(condition: Condition) -> None:
    everything, nothing = (hidden(condition, np.full(4, value), CLASSES) for value in (True, False))
    assert_same(everything, unconditional(condition, CLASSES), np.asarray)
    assert_same(nothing, condition, np.asarray)
