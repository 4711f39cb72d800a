"""What an image is conditioned on: its class, or the features of its caption; methods treat both alike."""

from collections.abc import Callable
from typing import Any, NamedTuple

from array_api_compat import array_namespace

Array = Any


class Text(NamedTuple):
    """Features of captions, for a batch or for many more; a caption without a token is no condition at all."""

    tokens: Array
    """(batch, n, width)"""
    mask: Array
    """bool (batch, n), False on padding."""


Condition = Any
"""Class numbers (batch,), where the number of classes means "none", or a `Text`."""


def each(function: Callable[[Array], Array], condition: Condition) -> Condition:
    """`function` of every array of a condition, such as one that selects or repeats samples of the batch."""
    return Text(*map(function, condition)) if isinstance(condition, Text) else function(condition)


def unconditional(condition: Condition, num_classes: int) -> Condition:
    """The condition of equally many images that are conditioned on nothing."""
    if isinstance(condition, Text):
        return condition._replace(mask=array_namespace(condition.mask).zeros_like(condition.mask))
    return array_namespace(condition).full_like(condition, num_classes)


def hidden(condition: Condition, hide: Array, num_classes: int) -> Condition:
    """The condition with nothing in the place of those where `hide`, bool (batch,), is true."""
    if isinstance(condition, Text):
        return condition._replace(mask=condition.mask & ~hide[:, None])
    return hide * num_classes + ~hide * condition
