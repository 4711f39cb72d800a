"""What data sets of image files share: where they lie, and how an image becomes a square of pixels."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from tqdm import tqdm

from harness.datasets import ImageSet, Split, split_rows
from harness.errors import UserError

DATA_FOLDER = "FEWSTEP_DATA"
"""The environment variable that names the folder which the paths of data sets start from; unset: the current one."""


def located(path: str) -> Path:
    """The file or folder of a profile's `data.path`. Raises UserError where there is none."""
    found = Path(os.environ.get(DATA_FOLDER, ""), path)
    if not found.exists():
        raise UserError(
            f"{found}: no such file or folder; set {DATA_FOLDER} to the folder that holds {path!r}, "
            "or correct data.path in the profile"
        )
    return found


def require_8_bits(mode: str, name: str) -> None:
    """Raise UserError for a Pillow mode of 16 or 32 bits, whose values Pillow would clip at 255."""
    if mode.startswith(("I", "F")):
        raise UserError(f"{name}: more than 8 bits a channel (Pillow's mode {mode}); save it in 8 bits")


def read_image(file: Path | IO[bytes], name: str, mode: str = "RGB") -> Image.Image:
    """An image, decoded, in one of Pillow's modes.

    Raises UserError, naming `name`, where the file is no image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(file) as opened:
            require_8_bits(opened.mode, name)
            return opened.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: cannot be read as an image ({error}); replace it or remove it") from None


def read_square(file: Path | IO[bytes], size: int, name: str) -> np.ndarray:
    """An image as uint8 (3, size, size): RGB, its largest central square, resized with the Lanczos filter.

    These are the steps by which EDM's data sets are made (Karras et al. 2022), so that an image which is of that size
    already stays as it is. Raises UserError, naming `name`, where the file is no image.
    """
    image = read_image(file, name)
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    # cropped first: resize(box=...) would filter across the border of the square
    square = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(square).transpose(2, 0, 1)


def read_captioned(
    name: str, split: Split, files: Sequence[Path], captions: Sequence[str], size: int, heldout: float
) -> ImageSet:
    """`split` of captioned image files, as one class, in shuffled order: uint8 images (n, 3, size, size)."""
    labels = np.zeros(len(files), np.int64)
    rows = split_rows(labels, split, heldout)
    images = np.empty((len(rows), 3, size, size), np.uint8)
    for position, row in enumerate(tqdm(rows, desc=f"{name} {split}", unit="image", mininterval=1)):
        images[position] = read_square(files[row], size, str(files[row]))
    return ImageSet(name, split, images, labels[rows], 1, np.array(captions, np.dtypes.StringDType())[rows])


def caption_from(value: object, name: str) -> str:
    """A caption, without blanks at its ends. Raises UserError, naming `name`, where it is no text, or is empty."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name}: its caption is {'empty' if isinstance(value, str) else f'no text: {value!r}'}")
    return value.strip()
