"""A folder of images with captions: a text file beside each image, or one table of all (metadata.csv, .jsonl)."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.datasets import ImageSet, Split
from harness.datasets.files import caption_from, located, read_captioned
from harness.datasets.folder import is_image
from harness.errors import UserError

TABLES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN = "file_name"
"""Of a table: the image's path, from the folder; so has Hugging Face's `imagefolder`."""


def load(split: Split, path: str, size: int, heldout: float, caption_column: str) -> ImageSet:
    """Load `split` as uint8 images (n, 3, size, size) with captions, in shuffled order.

    With a table, the images are those that it names; without, all below the folder, each with its caption in the file
    of the same name that ends in .txt. Raises UserError for a missing or empty folder, for an image or caption that is
    missing, empty or damaged, and for two tables.
    """
    folder = located(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; correct data.path in the profile")
    tables = [folder / name for name in TABLES if (folder / name).exists()]
    if len(tables) > 1:
        raise UserError(f"{folder}: holds both {' and '.join(TABLES)}; remove one")
    found = list(_from_table(tables[0], caption_column) if tables else _from_text_files(folder))
    if not found:
        raise UserError(f"{folder}: holds no images with captions; fill it, or correct data.path in the profile")
    files, captions = zip(*found, strict=True)
    return read_captioned("captioned-folder", split, files, captions, size, heldout)


def _from_text_files(folder: Path) -> Iterator[tuple[Path, str]]:
    for file in sorted(filter(is_image, folder.rglob("*"))):
        text = file.with_suffix(".txt")
        if not text.exists():
            raise UserError(f"{file}: has no caption; write it into {text.name} beside it, or all into {TABLES[0]}")
        yield file, caption_from(_read(text), str(text))


def _from_table(table: Path, caption_column: str) -> Iterator[tuple[Path, str]]:
    for line, row in _csv_rows(table) if table.suffix == ".csv" else _json_rows(table):
        where = f"{table}:{line}"
        for column in (FILE_COLUMN, caption_column):
            if column not in row:
                raise UserError(f"{where}: no {column!r}; it has: {', '.join(map(str, row))} (data.caption_column)")
        file = table.parent / str(row[FILE_COLUMN])
        if not file.is_file():
            raise UserError(f"{where}: no such file as {file}; restore it, or remove the line")
        yield file, caption_from(row[caption_column], where)


def _csv_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.DictReader(io.StringIO(_read(table), newline=""), strict=True)
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise UserError(f"{table}:{rows.line_num}: not valid CSV ({error})") from None


def _json_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(_read(table).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise UserError(f"{table}:{line}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{table}:{line}: holds {type(row).__name__}, but should hold an object")
        yield line, row


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # with or without a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({error})") from None
