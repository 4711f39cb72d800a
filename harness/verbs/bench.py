"""`fewstep bench`: what the harness costs, measured side by side with hand-written loops, and JAX beside PyTorch."""

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.backends import get_backend
from harness.datasets import load_dataset
from harness.errors import UserError
from harness.files import write_atomic
from harness.networks.transformer import initial_weights
from harness.noise import Noise
from harness.provenance import run_record
from harness.training import BatchStream, Run
from harness.workspace import TEACHER, RunAddress, Workspace

MATCHING = "moment-matching/alternating"
TURNS = {"denoise": TEACHER, "auxiliary": MATCHING, "student": MATCHING}
BLOCK, REPEATS, WARM_UP = 10, 9, 5


def run(workspace: Workspace, out: Path | None) -> None:
    """Print, and write to `out` as JSON, milliseconds of an update and the ratios, each a median over paired blocks."""
    if out is not None and not out.parent.is_dir():
        raise UserError(f"{out.parent}: the output folder does not exist; create it, or choose another")
    steps = max(workspace.method_config(MATCHING, "default").steps)
    rows: list[dict[str, Any]] = []
    data = load_dataset(workspace.profile.data.name, "train")
    for turn, method in TURNS.items():
        contenders: dict[str, Callable[[], object]] = {}
        for backend in ("torch", "jax"):
            contenders[f"{backend} harness"] = _harness_update(workspace, backend, method, turn, steps, data)
            contenders[f"{backend} by hand"] = _bare_update(workspace, backend, method, turn, steps, data)
        times = _interleaved(contenders)
        for backend in ("torch", "jax"):
            overhead = _ratio(times[f"{backend} harness"], times[f"{backend} by hand"])
            rows.append({"quantity": f"{turn} update, {backend}: harness / by hand", "ratio": overhead, "bar": 1.10})
        ratio = _ratio(times["jax harness"], times["torch harness"])
        rows.append({"quantity": f"{turn} update: jax / torch", "ratio": ratio, "bar": 1.20})
        for name, blocks in times.items():
            rows.append(
                {"quantity": f"{turn} update, {name}", "milliseconds": round(1e3 * statistics.median(blocks), 2)}
            )
    rows.append({"quantity": "fewstep --help", "seconds": _help_seconds(), "bar": 0.5})
    for row in rows:
        values = ", ".join(f"{key} {value}" for key, value in row.items() if key != "quantity")
        print(f"{row['quantity']:<45} {values}")
    if out is not None:
        write_atomic(out, json.dumps({"rows": rows, "provenance": run_record()}, indent=1) + "\n")


def _harness_update(
    workspace: Workspace, backend_name: str, method_id: str, turn: str, steps: int, data: Any
) -> Callable[[], object]:
    """The training loop's own update: draws, batch, optimiser step, finite check."""
    student = TEACHER if method_id == TEACHER else f"k{steps}"
    address = RunAddress(backend_name, method_id, "default", student, 0)
    spec = workspace.spec(data.images.shape[1:], data.num_classes)
    method = workspace.make_method(address, spec)
    schedule, adam = workspace.training(address)
    backend, weights = get_backend(backend_name), initial_weights(spec, 0)
    learner = backend.learner(method, spec, {name: weights for name in method.networks()}, adam)
    with TemporaryDirectory() as folder:
        streams = {"data": BatchStream("data", {"images": data.images, "labels": data.labels}, Noise(0))}
        run = Run(Path(folder), backend, learner, schedule, 0, streams)
    turns = list(method.turns)
    numbers = iter(range(turns.index(turn), 10**9, len(turns)))
    return lambda: run.update(next(numbers))


def _bare_update(
    workspace: Workspace, backend: str, method_id: str, turn: str, steps: int, data: Any
) -> Callable[[], object]:
    student = TEACHER if method_id == TEACHER else f"k{steps}"
    schedule, adam = workspace.training(RunAddress(backend, method_id, "default", student, 0))
    spec = workspace.spec(data.images.shape[1:], data.num_classes)
    bare = importlib.import_module(f"harness.backends.{backend}_bare")
    updates = bare.updates(spec, initial_weights(spec, 0), data.images, data.labels, schedule.batch, adam, steps)
    chosen: Callable[[], object] = updates[turn]
    return chosen


def _interleaved(contenders: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of one update in each block; the contenders take turns, so that a slower moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for update in contenders.values():
        for _ in range(WARM_UP):
            update()
    for _ in range(REPEATS):
        for name, update in contenders.items():
            began = time.perf_counter()
            for _ in range(BLOCK):
                update()
            times[name].append((time.perf_counter() - began) / BLOCK)
    return times


def _ratio(a: list[float], b: list[float]) -> float:
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)


def _help_seconds() -> float:
    command, seconds = str(Path(sys.executable).with_name("fewstep")), []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([command, "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return round(statistics.median(seconds), 3)
