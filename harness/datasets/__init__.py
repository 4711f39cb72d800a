"""Labelled image sets with a content digest, and the registry of data sets."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from harness.datasets.archive import load_arrays, save_arrays
from harness.errors import UserError

Split = Literal["train", "heldout", "all"]

# name -> module with `load(split) -> ImageSet`; modules are imported on use because their libraries are heavy
LOADERS = {"digits": "harness.datasets.digits"}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a labelled data set.

    images: float32 (n, channels, height, width) in [-1, 1]; labels: int64 (n,) in [0, num_classes).
    Raises UserError where an array has another dtype, shape or range, or is not finite.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int

    def __post_init__(self) -> None:
        where = f"data set '{self.name}/{self.split}'"
        if self.images.dtype != np.float32 or self.images.ndim != 4 or len(self.images) == 0:
            raise UserError(f"{where}: images must be float32 (n, c, h, w), not {_describe(self.images)}")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise UserError(f"{where}: labels must be int64 ({len(self.images)},), not {_describe(self.labels)}")
        if not np.all(np.abs(self.images) <= 1):  # NaN compares false
            raise UserError(f"{where}: image values must be finite and in [-1, 1]")
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            raise UserError(f"{where}: labels must be in [0, {self.num_classes})")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the content: shape, number of classes, images and labels."""
        sha = hashlib.sha256(repr((self.images.shape, self.num_classes)).encode())
        sha.update(np.ascontiguousarray(self.images, dtype="<f4").tobytes())
        sha.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        return sha.hexdigest()

    def save(self, path: Path | str) -> None:
        """Write the set and its digest to `path` (npz), atomically. Raises UserError where that fails."""
        save_arrays(
            path,
            name=self.name,
            split=self.split,
            images=self.images,
            labels=self.labels,
            num_classes=self.num_classes,
            digest=self.digest,
        )

    @classmethod
    def load(cls, path: Path | str) -> "ImageSet":
        """Read a set that `save` wrote. Raises UserError where the file is absent, damaged, or fails its digest."""
        if not Path(path).exists():
            raise UserError(f"{path}: no such file; write it first, with: fewstep data")
        name, split, images, labels, num_classes, digest = load_arrays(
            path, "name", "split", "images", "labels", "num_classes", "digest"
        )
        image_set = cls(str(name), str(split), images, labels, int(num_classes))
        if image_set.digest != str(digest):
            raise UserError(f"{path}: its content does not match its digest; delete it and produce it anew")
        return image_set


def load_dataset(name: str, split: Split) -> ImageSet:
    """Load `split` of the data set `name`; "all" is "train" followed by "heldout".

    Raises UserError for an unknown name or split.
    """
    if name not in LOADERS:
        raise UserError(f"unknown data set '{name}'; known: {', '.join(sorted(LOADERS))}")
    if split not in get_args(Split):
        raise UserError(f"unknown split '{split}'; known: {', '.join(get_args(Split))}")
    image_set: ImageSet = import_module(LOADERS[name]).load(split)
    return image_set


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
