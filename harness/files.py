"""Atomic files: what exists under its final name is whole."""

import os
import tempfile
from pathlib import Path

from harness.errors import UserError


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Write `content` to `path` so that a crash leaves either the old file or the new one, never a part of it.

    Raises UserError where the folder is missing, not writable, or the disk is full; nothing is left behind then.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(data)
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
