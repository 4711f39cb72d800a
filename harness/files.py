"""Atomic files: what exists under its final name is whole."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from harness.errors import UserError


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Write `content` to `path` as `open_atomic` does."""
    with open_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def open_atomic(path: Path | str) -> Iterator[IO[bytes]]:
    """A file to write that becomes `path` at the end: a crash leaves either the old one or the new one, never a part.

    Raises UserError where the folder is missing, not writable, or the disk is full; nothing is left behind then.
    """
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except FileNotFoundError:
        raise UserError(f"{path.parent}: the output folder does not exist; create it, or choose another") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
