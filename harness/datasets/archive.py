"""Named arrays in one npz file, written whole and read without pickle."""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from harness.errors import UserError
from harness.files import open_atomic


def save_arrays(path: Path | str, **arrays: np.ndarray | str | int) -> None:
    """Write named arrays, strings or integers to `path` atomically; equal arrays give equal bytes.

    Raises UserError where the file cannot be written.
    """
    with open_atomic(path) as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})


def load_arrays(path: Path | str, *names: str) -> list[np.ndarray]:
    """Read the arrays `names` from `path`, in that order.

    Raises UserError where the file is absent, is not an npz file, is truncated or altered, or lacks one of the names.
    """
    with _opened(path, names) as members:
        # The whole member is read first: zipfile compares its checksum only at the member's end.
        return [np.lib.format.read_array(io.BytesIO(members.read(f"{name}.npy")), allow_pickle=False) for name in names]


def holds_array(path: Path | str, name: str) -> bool:
    """Whether `path` holds the array `name`. Raises UserError as `load_arrays` does."""
    with _opened(path, (name,)) as members:
        return f"{name}.npy" in members.namelist()


def map_array(path: Path | str, name: str) -> np.ndarray:
    """The array `name` of `path` mapped into memory: what is not used is not read, and writes stay in memory.

    Its checksum is not compared. Raises UserError as `load_arrays` does, and for a compressed array.
    """
    with _opened(path, (name,)) as members:
        member = members.getinfo(f"{name}.npy")
        with members.open(member) as file:
            version = np.lib.format.read_magic(file)
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            if version != (1, 0) or fortran_order or dtype.hasobject or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("not as save_arrays writes it")
            header = file.tell()
        with open(path, "rb") as whole:
            whole.seek(member.header_offset + 26)  # in the local header: the lengths of its name and of its extra field
            header += 30 + sum(struct.unpack("<HH", whole.read(4)))
        return np.asarray(np.memmap(path, dtype, mode="c", offset=member.header_offset + header, shape=shape))


def array_headers(path: Path | str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of every array in `path`, without reading them. Raises UserError as `load_arrays` does."""
    with _opened(path, ()) as members:
        headers = {}
        for name in members.namelist():
            with members.open(name) as file:
                headers[name.removesuffix(".npy")] = _header(file)
        return headers


def read_batches(path: Path | str, name: str, rows: int) -> Iterator[np.ndarray]:
    """The array `name` of `path`, `rows` of its rows at a time, in constant memory, compressed or not.

    Raises UserError as `load_arrays` does; a wrong checksum after the last batch.
    """
    with _opened(path, (name,)) as members, members.open(f"{name}.npy") as file:
        shape, dtype = _header(file)
        row = dtype.itemsize * math.prod(shape[1:])
        for start in range(0, shape[0], rows):
            count = min(rows, shape[0] - start)
            yield np.frombuffer(file.read(count * row), dtype).reshape(count, *shape[1:])
        file.read(1)  # past the end, where zipfile compares the checksum


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError("a header of another version")
    shape, fortran_order, dtype = read[version](file)
    if dtype.hasobject or (fortran_order and len(shape) > 1):
        raise ValueError("objects, or not in C order")
    return shape, dtype


@contextmanager
def _opened(path: Path | str, names: tuple[str, ...]) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as members:
            yield members
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; produce it first, or correct the path") from None
    except KeyError:
        raise UserError(f"{path}: expected the arrays {', '.join(names)}; produce the file anew") from None
    except (zipfile.BadZipFile, zlib.error, TokenError, ValueError, OSError, EOFError, NotImplementedError):
        raise UserError(f"{path}: truncated, altered, or not an npz file; delete it and produce it anew") from None
