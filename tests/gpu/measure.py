"""What the GPU tests compute, run as a process of its own, which sees the GPU or not.

`python -m tests.gpu.measure gradients torch OUT.npz`, `python -m tests.gpu.measure throughput jax OUT.json`
"""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from harness.backends import get_backend
from harness.backends.base import Adam
from harness.datasets import ImageSet, load_dataset
from harness.diffusion import CosineClock
from harness.method import Method
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from harness.training import Schedule
from harness.verbs import bench
from tests.conftest import random_batch
from tests.contract.test_methods import ADAM, BATCH, METHODS, TINY, TURNS, examples, make, starting_weights, step_counts

Row = dict[str, Any]
IMAGES, TABLE = "FEWSTEP_GPU_IMAGES", "FEWSTEP_GPU_TABLE"
DIT_S_4 = TransformerSpec(channels=3, size=32, patch=4, width=384, depth=12, heads=6, num_classes=10)
"""A network of a usual size (Peebles & Xie 2023): 33 million parameters, 64 tokens."""
LARGE_BATCH = 128
BLOCK = 5
"""Calls in a block; fewer than on the CPU, because a GPU's times are steady."""


def environment(backend: str, gpu: bool) -> dict[str, str]:
    """The variables of a process in which this backend uses the GPU, or sees none."""
    if not gpu:
        return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    platform = {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # cuda: an error, not the CPU
    free = {name: value for name, value in os.environ.items() if name not in ("PJRT_NPROC", "XLA_FLAGS")}  # to compile
    return {**free, **(platform if backend == "jax" else {})}


def device(backend: str) -> str:
    """The name of the device that a backend uses; "cpu" where that is no GPU."""
    if backend == "jax":
        import jax

        return jax.devices()[0].device_kind
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def gradients(backend: str, turns: Iterable[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Loss and gradients of each method's turn, by "<method> <turn>/loss" and "<method> <turn>/<network>/<key>"."""
    found: dict[str, np.ndarray] = {}
    for method_id, turn in turns:
        method, name = make(method_id), f"{method_id} {turn}"
        learner = get_backend(backend).learner(method, TINY, starting_weights(method), ADAM)
        loss, by_network = learner.gradients(turn, examples(method, turn, 0), method.draw(Noise(1), 0, 0, BATCH))
        found[f"{name}/loss"] = np.array(loss)
        for network, values in by_network.items():
            found |= {f"{name}/{network}/{key}": value for key, value in values.items()}
    return found


def differences(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The relative difference of each array; of a gradient that nearly vanishes, relative to its network's others."""
    wholes: dict[str, float] = {}
    for name, array in expected.items():
        network = name.rsplit("/", 1)[0]
        wholes[network] = float(np.hypot(wholes.get(network, 0.0), np.linalg.norm(array)))
    relative = {}
    for name, array in expected.items():
        scale = max(float(np.linalg.norm(array)), 1e-3 * wholes[name.rsplit("/", 1)[0]])
        relative[name] = float(np.linalg.norm(array - found[name])) / scale
    return relative


def load_images(folder: str | None, spec: TransformerSpec) -> ImageSet:
    """Images for `spec`: of a folder of class folders or of parquet files with the columns img and label, or random."""
    if folder is None:
        batch = random_batch(spec, 4 * LARGE_BATCH)
        return ImageSet("random", "heldout", batch["images"], batch["condition"], spec.num_classes)
    path = Path(folder).absolute()
    options: Row = {"path": str(path), "size": spec.size, "heldout": 0.1}  # a part of them is enough
    if any(path.glob("*.parquet")):
        data = load_dataset("parquet", "heldout", **options, image_column="img", label_column="label")
    else:
        data = load_dataset("folder", "heldout", **options)
    return replace(data, name=path.name)


def throughput(
    backend: str, methods: Mapping[str, type[Method]], spec: TransformerSpec, batch: int, data: ImageSet
) -> Iterator[Row]:
    """Every turn's update against its bare network passes, of students that serve two steps, or the one they have."""
    spec = replace(spec, num_classes=data.num_classes)
    schedule = Schedule(1000, batch, learning_rate=1e-4, warmup_updates=0, checkpoint_every=1000, log_every=1000)
    adam = Adam(beta1=0.0, beta2=0.99, eps=1e-8, clip=1.0)
    passes = bench.bare_passes(backend, spec, batch, data)
    for method_id, kind in methods.items():
        method = kind(max(step_counts(method_id)), schedule.updates, CosineClock(), kind.Options(), spec)
        for turn, update in bench.training_updates(backend, method, schedule, adam, data).items():
            contenders = {"update": update, "passes": partial(passes, method.turns[turn])}
            times = bench.interleaved(contenders, BLOCK)
            milliseconds = bench.milliseconds(times["update"])
            yield {
                "backend": backend,
                "version": version(backend),
                "device": device(backend),
                "images": f"{data.name} {spec.size}x{spec.size}",
                "batch": batch,
                "params": spec.n_parameters,
                "method": method_id,
                "steps": method.k,
                "turn": turn,
                "milliseconds": milliseconds,
                "bare_milliseconds": bench.milliseconds(times["passes"]),
                "ratio": bench.ratio(times["update"], times["passes"]),
                "images_per_second": round(1e3 * batch / milliseconds),
            }


def write_table(path: Path, rows: list[Row]) -> None:
    """Write `rows`, all of one backend, as CSV; those of the other backend that are there already stay."""
    kept: list[Row] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["backend"] != rows[0]["backend"]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


def main(what: str, backend: str, out: str) -> None:
    """Compute for every method, and write to the file `out`."""
    if what == "gradients":
        np.savez(out, **gradients(backend, TURNS), device=device(backend))
    else:
        methods = {name: kind for name, kind in METHODS.items() if name != "probe"}
        data = load_images(os.environ.get(IMAGES), DIT_S_4)
        rows = []
        for row in throughput(backend, methods, DIT_S_4, LARGE_BATCH, data):
            print("{backend} {method} {turn}: {milliseconds} ms, {ratio} of the bare passes".format(**row), flush=True)
            rows.append(row)
            Path(out).write_text(json.dumps(rows))  # after each, because JAX compiles for minutes


if __name__ == "__main__":
    main(*sys.argv[1:])
