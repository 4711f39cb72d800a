"""A folder of images: one sub-folder for each class, or all images in the folder itself, which are then one class."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from harness.datasets import ImageSet, Split, split_rows
from harness.datasets.files import located, read_square
from harness.errors import UserError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def load(split: Split, path: str, size: int, heldout: float) -> ImageSet:
    """Load `split` as uint8 images (n, 3, size, size), in shuffled order; classes are numbered by sub-folder name.

    Files and folders whose name begins with a dot are passed over, as are files that are no images by their suffix.
    Raises UserError for a missing or empty folder, for images beside class folders, and for a damaged image.
    """
    files, classes = _find(located(path))
    rows = split_rows(classes, split, heldout)
    images = np.empty((len(rows), 3, size, size), np.uint8)
    for position, row in enumerate(tqdm(rows, desc=f"{path} {split}", unit="image", mininterval=1)):
        images[position] = read_square(files[row], size, str(files[row]))
    return ImageSet("folder", split, images, classes[rows], int(classes.max()) + 1)


def _find(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Every image below the folder, and its class (n,)."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; correct data.path in the profile, or name the data set parquet")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    class_folders = [entry for entry in entries if entry.is_dir()]
    flat = [entry for entry in entries if is_image(entry)]
    if flat and class_folders:
        raise UserError(f"{folder}: holds images ({flat[0].name}) beside class folders; move the ones or the others")
    groups = [sorted(filter(is_image, found.rglob("*"))) for found in class_folders] or [flat]
    for group, place in zip(groups, class_folders or [folder], strict=True):
        if not group:
            raise UserError(f"{place}: holds no images ({', '.join(sorted(SUFFIXES))}); fill it or remove it")
    classes = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    return [file for group in groups for file in group], classes


def is_image(path: Path) -> bool:
    """Whether a file is one of a folder of images, by its suffix; names that begin with a dot are passed over."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
