"""Checkpoints: one safetensors file with its manifest in the header, written atomically and verified when read.

The manifest says what the tensors are: the configuration that they came from, the network's sizes, and a digest of
manifest and tensors. A result's holds nothing that varies between equal runs, so that equal runs give equal bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from harness.errors import UserError
from harness.files import write_atomic

FORMAT = 1
HEADER_KEY = "fewstep"


def content_digest(tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest, and of the tensors' names, types, shapes and values."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = np.asarray(tensors[name], order="C")  # ascontiguousarray would make a scalar a vector
        digest.update(f"{name}/{tensor.dtype.str}/{tensor.shape}/".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def save_checkpoint(path: Path, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Write tensors and manifest to `path`. Raises UserError where the folder is missing or the disk is full."""
    record = {**manifest, "format": FORMAT}
    record["digest"] = content_digest(tensors, record)
    header = {HEADER_KEY: json.dumps(record, sort_keys=True)}
    write_atomic(path, save({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}, header))


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the tensors and the manifest.

    Raises UserError where the file is missing, truncated, altered, or not one of ours.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; train it first, or correct the path")
    remedy = "delete it and train again, or restore it from a copy"
    try:
        with safe_open(path, framework="np") as file:
            manifest = json.loads((file.metadata() or {}).get(HEADER_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path}: the checkpoint is damaged or not a checkpoint ({error}); {remedy}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not a fewstep checkpoint of format {FORMAT}; {remedy}")
    content = {key: value for key, value in manifest.items() if key != "digest"}
    if content_digest(tensors, content) != manifest.get("digest"):
        raise UserError(f"{path}: the checkpoint was altered (its content does not match its digest); {remedy}")
    return tensors, manifest


def require_config(path: Path, manifest: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise UserError naming the first keys that differ between a checkpoint's configuration and the expected one."""
    differing = differences(manifest["config"], expected)
    if differing:
        raise UserError(
            f"{path}: the checkpoint was made with another configuration ({'; '.join(differing[:3])}); "
            "train it again with this one, or use the profile that it was made with"
        )


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Readable differences between two JSON-like values, one line a leaf: `key is a, expected b`."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return [
            line
            for key in sorted({*ours, *theirs})
            for line in differences(ours.get(key), theirs.get(key), f"{where}.{key}".lstrip("."))
        ]
    return [] if ours == theirs else [f"{where} is {ours}, expected {theirs}"]
