"""Parquet files with a column of images and one of labels or captions, as the Hugging Face hub has them."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from tqdm import tqdm

from harness.datasets import ImageSet, Split, split_rows
from harness.datasets.files import caption_from, located, read_square
from harness.errors import UserError

READ_ROWS = 256
"""Images that are read, still encoded, at a time."""


def load(
    split: Split,
    path: str,
    size: int,
    heldout: float,
    image_column: str,
    label_column: str,
    caption_column: str | None = None,
) -> ImageSet:
    """Load `split` as uint8 images (n, 3, size, size), in shuffled order, of one file or of a folder of files.

    The image column holds encoded images: bytes, or structures with the field `bytes`. Raises UserError for missing
    files and columns, for labels that are not whole numbers from 0, for captions that are empty or no text, and for a
    damaged file or image. With a column of captions, that of labels is not read, and all images are of one class.
    """
    place = located(path)
    files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    if not files:
        raise UserError(f"{place}: holds no .parquet files; correct data.path in the profile")
    captions = None
    if caption_column is None:
        labels = np.concatenate([_labels(file, label_column) for file in files])
    else:
        captions = np.concatenate([_captions(file, caption_column) for file in files])
        labels = np.zeros(len(captions), np.int64)
    rows = split_rows(labels, split, heldout)
    position = np.full(len(labels), -1)
    position[rows] = np.arange(len(rows))
    images = np.empty((len(rows), 3, size, size), np.uint8)
    row = 0
    with tqdm(total=len(rows), desc=f"{path} {split}", unit="image", mininterval=1) as bar:
        for file in files:
            first = row
            for batch in _open(file, image_column).iter_batches(READ_ROWS, columns=[image_column]):
                for value in batch.column(0):
                    if position[row] >= 0:
                        images[position[row]] = _image(value.as_py(), size, f"{file}: row {row - first}")
                        bar.update()
                    row += 1
    chosen = None if captions is None else captions[rows]
    return ImageSet("parquet", split, images, labels[rows], int(labels.max()) + 1, chosen)


def _open(file: Path, column: str) -> parquet.ParquetFile:
    try:
        opened = parquet.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a parquet file, or damaged ({str(error).splitlines()[0]})") from None
    names = opened.schema_arrow.names
    if column not in names:
        raise UserError(f"{file}: no column {column!r}; it has: {', '.join(names)} (data.*_column)")
    return opened


def _labels(file: Path, column: str) -> np.ndarray:
    values = _open(file, column).read(columns=[column]).column(0)
    if not pa.types.is_integer(values.type) or values.null_count or (len(values) and values.to_numpy().min() < 0):
        raise UserError(f"{file}: the column {column!r} must hold whole numbers from 0; a set without labels has none")
    return values.to_numpy().astype(np.int64)


def _captions(file: Path, column: str) -> np.ndarray:
    values = _open(file, column).read(columns=[column]).column(0).to_pylist()
    captions = [caption_from(value, f"{file}: row {row}, {column!r}") for row, value in enumerate(values)]
    return np.array(captions, np.dtypes.StringDType())


def _image(value: object, size: int, name: str) -> np.ndarray:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise UserError(f"{name}: holds no encoded image, but {type(content).__name__}; correct data.image_column")
    return read_square(io.BytesIO(content), size, name)
