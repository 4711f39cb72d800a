"""What data sets of image files share: where they lie, and how an image becomes a square of pixels."""

import os
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

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


def read_image(file: Path | IO[bytes], name: str, mode: str = "RGB") -> Image.Image:
    """An image, decoded, in one of Pillow's modes. Raises UserError, naming `name`, where the file is no image."""
    try:
        with Image.open(file) as opened:
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
