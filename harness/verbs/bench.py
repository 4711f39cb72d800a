"""`fewstep bench`: what the harness costs beside hand-written loops and bare network calls, and JAX beside PyTorch."""

import importlib
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.addresses import TEACHER, RunAddress
from harness.backends import BACKENDS, get_backend
from harness.backends.base import Adam, Weights
from harness.datasets import ImageSet, load_dataset, unit_range
from harness.errors import UserError
from harness.files import write_atomic
from harness.method import Average, Head, Method, Preconditioner, Pretrained, Turn
from harness.networks.transformer import TransformerSpec, initial_head, initial_weights
from harness.noise import Noise
from harness.provenance import run_record
from harness.registry import get_method
from harness.training import BatchStream, Run, Schedule
from harness.workspace import Workspace

MATCHING = "moment-matching/alternating"
BY_HAND = {"denoise": TEACHER, "auxiliary": MATCHING, "student": MATCHING}
"""The updates that are written by hand as well, and their methods."""
BLOCK, REPEATS, WARM_UP = 20, 9, 3
"""Calls in a block: as in training, what a call finds in the processor's caches is mostly what the last one left."""
PAIRS = 1000

Contenders = dict[str, Callable[[], object]]
Row = dict[str, Any]


def run(workspace: Workspace, out: Path | None) -> None:
    """Print, and write to `out` as JSON, milliseconds of an update and the ratios, each a median over paired blocks."""
    if out is not None and not out.parent.is_dir():
        raise UserError(f"{out.parent}: the output folder does not exist; create it, or choose another")
    if workspace.profile.text is not None:
        raise UserError(
            f"bench: profile {workspace.profile.name!r} conditions on text; name one of classes, say digits"
        )
    data = load_dataset(split="train", **workspace.profile.data.model_dump())
    rows = []
    measurements = beside_loops_by_hand(workspace, data), beside_bare_passes(workspace, data), [_help()]
    for row in itertools.chain(*measurements):
        values = ", ".join(f"{key} {value}" for key, value in row.items() if key != "quantity")
        print(f"{row['quantity']:<90} {values}", flush=True)
        rows.append(row)
    if out is not None:
        write_atomic(out, json.dumps({"rows": rows, "provenance": run_record()}, indent=1) + "\n")


def beside_loops_by_hand(workspace: Workspace, data: ImageSet) -> Iterator[Row]:
    """The update of the teacher and of both turns of Algorithm 2 against the same update written by hand."""
    steps = max(workspace.method_config(RunAddress("torch", MATCHING, "default", "k1", 0)).steps)
    for turn, method in BY_HAND.items():
        contenders: Contenders = {}
        for backend in BACKENDS:
            address = RunAddress(backend, method, "default", TEACHER if method == TEACHER else f"k{steps}", 0)
            bound, schedule, adam = _bound(workspace, address, data)
            bare = importlib.import_module(f"harness.backends.{backend}_bare")
            weights, images = initial_weights(bound.spec, 0), unit_range(data.images)
            by_hand = bare.updates(bound.spec, weights, images, data.labels, schedule.batch, adam, steps)
            contenders[f"{backend} harness"] = training_updates(backend, bound, schedule, adam, data)[turn]
            contenders[f"{backend} by hand"] = by_hand[turn]
        times = interleaved(contenders, BLOCK)
        for backend in BACKENDS:
            overhead = ratio(times[f"{backend} harness"], times[f"{backend} by hand"])
            yield {"quantity": f"{turn} update, {backend}: harness / by hand", "ratio": overhead, "bar": 1.10}
        overhead = ratio(times["jax harness"], times["torch harness"])
        yield {"quantity": f"{turn} update: jax / torch", "ratio": overhead, "bar": 1.20}
        for name, blocks in times.items():
            yield {"quantity": f"{turn} update, {name}", "milliseconds": milliseconds(blocks)}


def beside_bare_passes(workspace: Workspace, data: ImageSet) -> Iterator[Row]:
    """Every turn's update of the teacher and of each method's default variant, at its smallest step count.

    The calls of an update do not depend on it, DMD2's apart, which are of one batch each for one step alone.
    """
    passes: dict[tuple[str, int], Callable[[Turn], object]] = {}
    for method_id, student in _students(workspace):
        updates: dict[str, Contenders] = {}
        for backend in BACKENDS:
            method, schedule, adam = _bound(workspace, RunAddress(backend, method_id, "default", student, 0), data)
            updates[backend] = training_updates(backend, method, schedule, adam, data)
            if (backend, schedule.batch) not in passes:
                passes[backend, schedule.batch] = bare_passes(backend, method.spec, schedule.batch, data)
        for name, turn in method.turns.items():
            contenders: Contenders = {}
            for backend in BACKENDS:
                contenders[f"{backend} update"] = updates[backend][name]
                contenders[f"{backend} passes"] = partial(passes[backend, schedule.batch], turn)
            times = interleaved(contenders, BLOCK)
            for backend in BACKENDS:
                update, bare = times[f"{backend} update"], times[f"{backend} passes"]
                yield {
                    "quantity": f"{method_id} ({student}), {name} update, {backend}: harness / bare passes",
                    "ratio": ratio(update, bare),
                    "bar": 1.15,
                    "milliseconds": milliseconds(update),
                    "bare_milliseconds": milliseconds(bare),
                }


def _students(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """The teacher, and the student with the fewest steps of each method's default variant."""
    yield TEACHER, TEACHER
    for config in workspace.profile.methods:
        if config.variant == "default":
            students = get_method(config.id).students(config.steps)
            yield config.id, min(students, key=lambda name: max(students[name]))


def _bound(workspace: Workspace, address: RunAddress, data: ImageSet) -> tuple[Method, Schedule, Adam]:
    spec = workspace.spec(data.images.shape[1:], data.num_classes)
    return workspace.make_method(address, spec), *workspace.training(address)


def training_updates(
    backend_name: str, method: Method, schedule: Schedule, adam: Adam, data: ImageSet
) -> dict[str, Callable[[], object]]:
    """The training loop's own update, by turn: draws, batch, optimiser step, averages, finite check."""
    backend = get_backend(backend_name)
    learner = backend.learner(method, method.spec, generic_weights(method), adam)
    streams = {source: BatchStream(source, _examples(source, data), Noise(0)) for source in method.sources}
    loop = Run(Path(), backend, learner, schedule, 0, streams)  # an update alone writes nothing

    def updates(turn: str) -> Callable[[], object]:
        steps = itertools.cycle(step for step in range(schedule.updates) if method.turn(step) == turn)
        pairs = itertools.pairwise(steps)
        return lambda: loop.update(*next(pairs))

    return {turn: updates(turn) for turn in method.turns}


def generic_weights(method: Method) -> dict[str, Weights]:
    """Weights for every network of a run, no two alike and no gate closed, so that no loss or gradient vanishes."""
    starts, noise = method.networks(), Noise(0)

    def weights(name: str) -> Weights:
        start = starts[name]
        if isinstance(start, Average):
            return weights(start.of)
        if isinstance(start, Head):
            return initial_head(name, start.shapes, 0)
        if isinstance(start, Pretrained):
            return start.read(start.files())
        initial = initial_weights(method.spec, 0)
        if isinstance(start, Preconditioner):
            return {key: np.ones_like(value) for key, value in initial.items()}
        return {
            key: value + np.float32(0.1) * noise.normal(f"bench/{name}/{key}", 0, 0, 1, value.shape)[0]
            for key, value in initial.items()
        }

    return {name: weights(name) for name in starts}


def _examples(source: str, data: ImageSet) -> dict[str, np.ndarray]:
    """The images and labels; with noise for `PAIRS` of them where pairs are asked for."""
    if source == "data":
        return {"images": data.images, "condition": data.labels}
    images = unit_range(data.images[:PAIRS])
    noise = Noise(0).normal("bench/pairs", 0, 0, len(images), images.shape[1:])
    return {"noise": noise, "images": images, "condition": data.labels[:PAIRS]}


def bare_passes(backend: str, spec: TransformerSpec, batch: int, data: ImageSet) -> Callable[[Turn], object]:
    """A function that makes the network calls of a turn, without any of the harness around them."""
    bare = importlib.import_module(f"harness.backends.{backend}_bare")
    rows = np.arange(batch) % len(data)
    images, labels = unit_range(data.images[rows]), data.labels[rows]
    made: Callable[[Turn], object] = bare.passes(spec, initial_weights(spec, 0), images, labels)
    return made


def interleaved(contenders: Contenders, block: int) -> dict[str, list[float]]:
    """Seconds of one call in each block; the contenders take turns, so that a slower moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        for _ in range(WARM_UP):
            call()
    for _ in range(REPEATS):
        for name, call in contenders.items():
            began = time.perf_counter()
            for _ in range(block):
                call()
            times[name].append((time.perf_counter() - began) / block)
    return times


def ratio(a: list[float], b: list[float]) -> float:
    """The median of the blocks' paired ratios."""
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)


def milliseconds(seconds: list[float]) -> float:
    """The median of the blocks."""
    return round(1e3 * statistics.median(seconds), 2)


def _help() -> Row:
    command, seconds = str(Path(sys.executable).with_name("fewstep")), []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([command, "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return {"quantity": "fewstep --help", "seconds": round(statistics.median(seconds), 3), "bar": 0.5}
