"""Images to be measured, read batch by batch: from a folder of image files, an npz file, or an array."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from harness.datasets.archive import array_headers, read_batches
from harness.errors import UserError
from harness.metrics.images import QUANTISER, require_uint8, to_uint8

AS_GIVEN = "none, 8 bits as given"


@dataclass(frozen=True, eq=False)
class ImageSource:
    """8-bit images of one size, in a fixed order, in constant memory.

    where: the file or folder; shape: (c, h, w), c being 1 or 3; names: of each image, by which captions are found;
    batches: how many -> uint8 arrays (n, c, h, w), in order; quantiser: by which they became 8-bit images.
    """

    where: str
    shape: tuple[int, int, int]
    names: Sequence[str]
    batches: Callable[[int], Iterator[np.ndarray]]
    quantiser: str = AS_GIVEN

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the pixels, whatever their order and their file format; reads all images once."""
        rows = (image for batch in self.batches(100) for image in np.ascontiguousarray(batch))
        digests = sorted(hashlib.sha256(image.data).digest() for image in rows)
        return hashlib.sha256(repr(self.shape).encode() + b"".join(digests)).hexdigest()


def open_images(path: Path) -> ImageSource:
    """Images of a folder or of an npz file. Raises UserError where there are none, or not of one size and kind."""
    if path.is_dir():
        return from_folder(path)
    if path.suffix == ".npz":
        return from_npz(path)
    raise UserError(f"{path}: no folder of images and no .npz file; correct the path")


def from_array(images: np.ndarray, where: str = "array") -> ImageSource:
    """Images uint8 (n, c, h, w) in memory. Raises UserError for another dtype or shape."""
    require_uint8(where, images, None)

    def batches(size: int) -> Iterator[np.ndarray]:
        return (images[start : start + size] for start in range(0, len(images), size))

    return ImageSource(where, images.shape[1:], [str(row) for row in range(len(images))], batches)


def from_folder(folder: Path) -> ImageSource:
    """All image files below a folder, by name: RGB, or grey (c = 1) where every one of them is grey.

    The headers of all files are read at once. Raises UserError where there are none, for a file that is no image, now
    or when it is decoded, for more than 8 bits a channel, and for images of several sizes.
    """
    from PIL import Image

    from harness.datasets.files import read_image, require_8_bits
    from harness.datasets.folder import SUFFIXES, is_image

    found = (file for file in folder.rglob("*") if is_image(file))
    files = sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))
    if not files:
        raise UserError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))}); correct the path")
    sizes, modes = [], set()
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.append(image.size)
                require_8_bits(image.mode, str(file))
                modes.add(image.mode)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{file}: cannot be read as an image ({error}); replace it or remove it") from None
        if sizes[-1] != sizes[0]:
            other, first = ("{}x{}".format(*size) for size in (sizes[-1], sizes[0]))
            raise UserError(f"{file}: {other} pixels, but {files[0].name} has {first}; images must be of one size")
    (width, height), grey = sizes[0], modes <= {"1", "L"}

    def decode(file: Path) -> np.ndarray:
        pixels = np.asarray(read_image(file, str(file), "L" if grey else "RGB"))
        return pixels[None] if grey else pixels.transpose(2, 0, 1)

    def batches(size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(files), size):
            yield np.stack([decode(file) for file in files[start : start + size]])

    names = [file.relative_to(folder).as_posix() for file in files]
    return ImageSource(str(folder), (1 if grey else 3, height, width), names, batches)


def from_npz(path: Path) -> ImageSource:
    """The array `images` (n, c, h, w), uint8 or floating point in [-1, 1], as this project writes them, or `arr_0`.

    `arr_0` is uint8 (n, h, w, c), as guided-diffusion's reference batches have it. Raises UserError where the file has
    neither, is damaged (now or when it is read to its end), or has images of another kind or range.
    """
    headers = array_headers(path)
    name = "images" if "images" in headers else "arr_0"
    if name not in headers:
        raise UserError(f"{path}: has no array images or arr_0, but: {', '.join(headers)}; save the images themselves")
    shape, dtype = headers[name]
    channels_last = name == "arr_0"
    kinds = (np.uint8,) if channels_last else (np.uint8, np.float32, np.float64)
    if len(shape) != 4 or not shape[0] or shape[3 if channels_last else 1] not in (1, 3) or dtype not in kinds:
        wanted = "uint8 (n, h, w, 1 or 3)" if channels_last else "uint8 or floating point (n, 1 or 3, h, w)"
        raise UserError(f"{path}: {name} must be {wanted}, not {dtype} {shape}; save it anew")
    quantised = dtype != np.uint8
    if quantised and not any((rows < 0).any() for rows in read_batches(path, name, 100)):
        raise UserError(f"{path}: {name} has no negative value; floating point is [-1, 1] here, map it or save uint8")

    def batches(size: int) -> Iterator[np.ndarray]:
        for rows in read_batches(path, name, size):
            images = rows.transpose(0, 3, 1, 2) if channels_last else rows
            yield to_uint8(images) if quantised else images

    one = (shape[3], *shape[1:3]) if channels_last else shape[1:]
    names = [str(row) for row in range(shape[0])]
    return ImageSource(str(path), one, names, batches, QUANTISER if quantised else AS_GIVEN)


def read_captions(path: Path, names: Sequence[str]) -> list[str]:
    """The captions of the images `names`: of a JSON object by name, of any other file one a line, in their order.

    Raises UserError where the file cannot be read, or lacks a caption or has too many.
    """
    try:
        text = path.read_text(encoding="utf-8")
        captions = json.loads(text) if path.suffix == ".json" else text.removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"{path}: the captions cannot be read ({error.strerror}); correct the path") from None
    except ValueError as error:
        raise UserError(f"{path}: not UTF-8 text, or not JSON ({error})") from None
    if path.suffix != ".json":
        if len(captions) != len(names):
            raise UserError(f"{path}: {len(captions)} lines for {len(names)} images; give one caption a line")
        return list(captions)
    if not isinstance(captions, dict) or not all(isinstance(caption, str) for caption in captions.values()):
        raise UserError(f"{path}: must be a JSON object from image names to captions")
    if missing := [name for name in names if name not in captions]:
        raise UserError(f"{path}: no caption for the image {missing[0]!r}; add it")
    return [captions[name] for name in names]
