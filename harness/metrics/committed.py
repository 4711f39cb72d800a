"""Weights that are committed with the project: files pinned by their hash, and training that is reproducible."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from harness.errors import UserError
from harness.files import write_atomic


def write_weights(path: Path | str, weights: Mapping[str, Tensor], report: Mapping[str, Any]) -> None:
    """Write weights (safetensors) with the report of their training, atomically; equal ones give equal bytes."""
    # One key with JSON inside: safetensors keeps several metadata keys in no fixed order, and bytes would vary.
    write_atomic(path, save(dict(weights), metadata={"extractor": json.dumps(report, sort_keys=True)}))


def read_weights(path: Path, network: nn.Module, sha256: str | None = None) -> tuple[str, dict[str, Any]]:
    """Read the weights in `path` into `network`; returns the file's hash and the report of its training.

    The hash is compared with `sha256`, where given, before anything is parsed. Raises UserError where it differs, and
    where the file is absent, damaged, or of another network.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; train the extractor, or restore the file from the repository")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 is not None and found != sha256:
        raise UserError(f"{path}: sha256 {found[:12]} is not the pinned {sha256[:12]}; restore it from the repository")
    try:
        with safe_open(path, framework="pt") as file:
            report: dict[str, Any] = json.loads((file.metadata() or {}).get("extractor", "{}"))
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, RuntimeError, ValueError):
        raise UserError(f"{path}: damaged, or not weights of this extractor; train the extractor anew") from None
    return found, report


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread, and torch's global generator seeded; both are as they were afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
