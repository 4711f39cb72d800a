"""Labelled image sets with a content digest, their split, and the registry of data sets."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from harness.datasets.archive import holds_array, load_arrays, map_array, save_arrays
from harness.errors import UserError
from harness.metrics.images import to_uint8

Split = Literal["train", "heldout", "validation", "all"]

# name -> module with `load(split, **options) -> ImageSet`, imported on use because its libraries are heavy
LOADERS = {
    "digits": "harness.datasets.digits",
    "folder": "harness.datasets.folder",
    "parquet": "harness.datasets.parquet",
    "shapes": "harness.datasets.shapes",
    "captioned-folder": "harness.datasets.captioned_folder",
    "coco": "harness.datasets.coco",
    "webdataset": "harness.datasets.webdataset",
}
EXTRAS = {"digits": "metrics"}
"""The extra of this package that installs what a loader imports, where it is not `images`."""
SPLIT_SEED = 0


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a labelled data set.

    images: (n, channels, height, width), float32 in [-1, 1], or uint8 (0 is -1, 255 is 1: `unit_range`), which a large
    set is kept in; labels: int64 (n,) in [0, num_classes); captions: StringDType (n,), none empty, or None.
    Raises UserError where an array has another dtype, shape or range, or is not finite.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    captions: np.ndarray | None = None

    def __post_init__(self) -> None:
        where = f"data set '{self.name}/{self.split}'"
        if self.images.dtype not in (np.float32, np.uint8) or self.images.ndim != 4 or len(self.images) == 0:
            raise UserError(f"{where}: images must be float32 or uint8 (n, c, h, w), not {_describe(self.images)}")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise UserError(f"{where}: labels must be int64 ({len(self.images)},), not {_describe(self.labels)}")
        if self.images.dtype == np.float32 and not np.all(np.abs(self.images) <= 1):  # NaN compares false
            raise UserError(f"{where}: image values must be finite and in [-1, 1]")
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            raise UserError(f"{where}: labels must be in [0, {self.num_classes})")
        if self.captions is not None and (
            self.captions.dtype != np.dtypes.StringDType() or self.captions.shape != self.labels.shape
        ):
            raise UserError(f"{where}: captions must be strings ({len(self.images)},), not {_describe(self.captions)}")
        if self.captions is not None and (self.captions == "").any():
            raise UserError(f"{where}: the caption of image {(self.captions == '').argmax()} is empty")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the content: shape, number of classes, images, labels and captions."""
        sha = hashlib.sha256(repr((self.images.shape, self.num_classes)).encode())
        sha.update(np.ascontiguousarray(self.images, dtype=self.images.dtype.newbyteorder("<")).data)
        sha.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        if self.captions is not None:
            sha.update(_to_json(self.captions))
        return sha.hexdigest()

    @cached_property
    def pixels(self) -> np.ndarray:
        """The images as metrics see them, uint8."""
        return self.images if self.images.dtype == np.uint8 else to_uint8(self.images)

    def save(self, path: Path | str) -> None:
        """Write the set and its digest to `path` (npz), atomically. Raises UserError where that fails."""
        captions = {} if self.captions is None else {"captions": np.frombuffer(_to_json(self.captions), np.uint8)}
        save_arrays(
            path,
            name=self.name,
            split=self.split,
            images=self.images,
            labels=self.labels,
            num_classes=self.num_classes,
            digest=self.digest,
            **captions,
        )

    @classmethod
    def load(cls, path: Path | str) -> "ImageSet":
        """Read a set that `save` wrote; its images stay on disk until they are used.

        Raises UserError where the file is absent, damaged, or fails its digest.
        """
        if not Path(path).exists():
            raise UserError(f"{path}: no such file; write it first, with: fewstep data")
        name, split, labels, num_classes, digest = load_arrays(path, "name", "split", "labels", "num_classes", "digest")
        captions = None
        if holds_array(path, "captions"):
            captions = np.array(json.loads(load_arrays(path, "captions")[0].tobytes()), np.dtypes.StringDType())
        image_set = cls(str(name), str(split), map_array(path, "images"), labels, int(num_classes), captions)
        if image_set.digest != str(digest):
            raise UserError(f"{path}: its content does not match its digest; delete it and produce it anew")
        return image_set


def unit_range(images: np.ndarray) -> np.ndarray:
    """uint8 images as float32 in [-1, 1]; any other array as it is."""
    return images / np.float32(127.5) - 1 if images.dtype == np.uint8 else images


def load_dataset(name: str, split: Split, **options: Any) -> ImageSet:
    """Load `split` of the data set `name`, with its options in a profile; "all" is "train" followed by "heldout".

    Of `shapes` alone there is "validation" too: new images of what is trained on, where "heldout" shows what is not.
    Raises UserError for an unknown name or split, and where a library that the data set needs is not installed.
    """
    if name not in LOADERS:
        raise UserError(f"unknown data set '{name}'; known: {', '.join(sorted(LOADERS))}")
    if split not in get_args(Split):
        raise UserError(f"unknown split '{split}'; known: {', '.join(get_args(Split))}")
    try:
        loader = import_module(LOADERS[name])
    except ModuleNotFoundError as error:
        remedy = f"pip install 'fewstep[{EXTRAS.get(name, 'images')}]'"
        raise UserError(f"the data set '{name}' needs {error.name}, which is not installed; {remedy}") from None
    image_set: ImageSet = loader.load(split, **options)
    return image_set


def split_rows(labels: np.ndarray, split: Split, heldout: float) -> np.ndarray:
    """The rows of `split`, shuffled: `heldout` is the share of each class that is held out, drawn at random.

    Within each class, because generated classes are balanced and FID notices class proportions. The same labels are
    always split alike. Raises UserError where either part would be empty, and for a split that only other sets have.
    """
    if split == "validation":
        raise UserError("this data set has no split 'validation'; it has: train, heldout, all")
    # Raw Philox words rather than Generator.permutation: only the former stay the same in every NumPy version.
    order = np.argsort(np.random.Philox(key=SPLIT_SEED).random_raw(len(labels)), kind="stable")
    by_class = order[np.argsort(labels[order], kind="stable")]
    held = np.zeros(len(labels), dtype=bool)
    for members in np.split(by_class, np.cumsum(np.bincount(labels))[:-1]):
        held[members[: round(heldout * len(members))]] = True
    parts = {"train": order[~held[order]], "heldout": order[held[order]]}
    if not len(parts["train"]) or not len(parts["heldout"]):
        raise UserError(f"a share of {heldout} of {len(labels)} images leaves a split empty; change data.heldout")
    return np.concatenate(list(parts.values())) if split == "all" else parts[split]


def _to_json(captions: np.ndarray) -> bytes:
    return json.dumps(captions.tolist(), ensure_ascii=False).encode()


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
