"""Conditions by number: those of training images, and those that generated images are drawn for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from harness.conditions import Condition, Text
from harness.datasets import ImageSet
from harness.errors import UserError
from harness.text_encoders.table import TextTable, captions_digest
from harness.workspace import Workspace


class Conditions(Protocol):
    """Conditions of many images, from which rows are taken: an array of classes is one."""

    def __getitem__(self, rows: Any) -> Condition:
        """The conditions of these rows (n,)."""

    def __len__(self) -> int:
        """How many there are."""


@dataclass(frozen=True, eq=False)
class Captions:
    """The features of the captions of a split, or of some of its images."""

    table: TextTable
    rows: np.ndarray
    """int64 (n,), of the table's images."""

    def __getitem__(self, rows: Any) -> Text:
        features = self.table.rows(self.rows[rows])
        return Text(features.tokens, features.mask)

    def __len__(self) -> int:
        return len(self.rows)

    def require(self, encoder_weights: object, checkpoint: Path) -> None:
        """Raise UserError where a network was trained on the features of other weights than these are of."""
        if self.table.identity["encoder_weights"] != encoder_weights:
            raise UserError(f"{checkpoint}: was trained with other weights of the text encoder; train it anew")


@dataclass(frozen=True, eq=False)
class Prompts:
    """What images are drawn for, in turn and again from the first one."""

    policy: str
    """How they were chosen, as metric identities say it."""
    conditions: Conditions
    labels: np.ndarray
    """int64 (n,): their classes, or the classes of the images whose captions they are."""
    images: str | None = None
    """The digest of the images whose captions they are."""

    def rows(self, start: int, count: int) -> np.ndarray:
        """The prompts of images start .. start + count - 1."""
        return np.arange(start, start + count) % len(self.labels)

    def condition(self, start: int, count: int) -> Condition:
        """The conditions of images start .. start + count - 1."""
        return self.conditions[self.rows(start, count)]


BALANCED = "balanced: image i has class i mod the number of classes"
CAPTIONED = "captions of the held-out images: image i has caption i mod their number"


def training_conditions(workspace: Workspace, data: ImageSet) -> Conditions:
    """Those of the training images: their classes, or their captions where the profile has a section `text`."""
    if workspace.profile.text is None:
        return data.labels
    return _captions(workspace, "train", data)


def prompts(workspace: Workspace, num_classes: int) -> Prompts:
    """What evaluated images are drawn for: the classes, or the captions of the held-out images."""
    if workspace.profile.text is None:
        return class_prompts(num_classes)
    heldout = ImageSet.load(workspace.data("heldout"))
    return Prompts(CAPTIONED, _captions(workspace, "heldout", heldout), heldout.labels, heldout.digest)


def _captions(workspace: Workspace, split: str, images: ImageSet) -> Captions:
    """The features of a split's captions. Raises UserError where they are of other captions, or another encoder's."""
    path, text = workspace.text(split), workspace.profile.text
    table = TextTable.load(path)
    of_images = None if images.captions is None else captions_digest(images.captions)
    if table.identity["captions_digest"] != of_images or text is None or table.identity["encoder"] != text.encoder:
        raise UserError(f"{path}: features of other captions, or of another encoder; make them anew: fewstep text")
    return Captions(table, np.arange(len(images)))


def class_prompts(num_classes: int) -> Prompts:
    """Each class in turn."""
    labels = np.arange(num_classes)
    return Prompts(BALANCED, labels, labels)


def text_width(conditions: Conditions) -> int:
    """Values in a token of captions; 0 of classes."""
    return int(conditions.table.tokens.shape[2]) if isinstance(conditions, Captions) else 0


def rows_of(conditions: Conditions, rows: Sequence[int] | np.ndarray) -> Conditions:
    """Some of the conditions, in the given order, with repetitions."""
    if isinstance(conditions, Captions):
        return Captions(conditions.table, conditions.rows[np.asarray(rows)])
    classes: np.ndarray = conditions[np.asarray(rows)]
    return classes
