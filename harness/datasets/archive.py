"""Named arrays in one npz file, written whole and read without pickle."""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from harness.errors import UserError
from harness.files import write_atomic


def save_arrays(path: Path | str, **arrays: np.ndarray | str | int) -> None:
    """Write named arrays, strings or integers to `path` atomically; equal arrays give equal bytes.

    Raises UserError where the file cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    write_atomic(path, buffer.getvalue())


def load_arrays(path: Path | str, *names: str) -> list[np.ndarray]:
    """Read the arrays `names` from `path`, in that order.

    Raises UserError where the file is absent, is not an npz file, is truncated or altered, or lacks one of the names.
    """
    try:
        with zipfile.ZipFile(path) as members:
            return [_read_array(members, name) for name in names]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; produce it first, or correct the path") from None
    except KeyError:
        raise UserError(f"{path}: expected the arrays {', '.join(names)}; produce the file anew") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError):
        raise UserError(f"{path}: truncated, altered, or not an npz file; delete it and produce it anew") from None


def _read_array(members: zipfile.ZipFile, name: str) -> np.ndarray:
    # The whole member is read first: zipfile compares its checksum only at the member's end.
    return np.lib.format.read_array(io.BytesIO(members.read(f"{name}.npy")), allow_pickle=False)
