"""`fewstep bench`: bare calls are the declared ones, updates are the training loop's, and every turn has its rows."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from harness.backends import BACKENDS
from harness.backends.base import Adam, Update
from harness.datasets import ImageSet
from harness.diffusion import CosineClock
from harness.method import Turn
from harness.training import Schedule
from harness.verbs import bench
from harness.workspace import Workspace
from tests.conftest import SPEC, generic_weights, random_batch
from tests.contract.probe import Probe
from tests.profiles import CONTENT, MATCHING, write_profile

TINY = replace(SPEC, depth=1)


class Paired(Probe):
    """The probe, which wants pairs as well."""

    id = "paired"
    sources = {"data": 2, "pairs": 1}


def test_bare_calls_are_those_of_the_turn_and_equal_on_both_backends() -> None:
    data, weights, results = random_batch(TINY, 6), generic_weights(TINY, 0), []
    for backend in BACKENDS:
        passes = importlib.import_module(f"harness.backends.{backend}_bare").passes(TINY, weights, *data.values())
        assert len(passes(Turn(("student",), forward=2, gradient=1, input_gradient=3))) == 6
        v, gradient, *rest = passes(Turn(("student",), forward=1, gradient=1, input_gradient=1, jvp=1))
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
        assert sum(leaf.size for leaf in leaves) == TINY.n_parameters
        norm = np.sqrt(sum(np.square(leaf).sum() for leaf in leaves))
        results.append([norm, *(np.asarray(leaf) for leaf in jax.tree.leaves((v, rest)))])
    for a, b in zip(*results, strict=True):
        assert a.shape in ((), data["images"].shape)
        assert np.linalg.norm(a) > 0
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


@pytest.mark.parametrize("backend", BACKENDS)
def test_updates_are_the_training_loops_and_stay_within_its_schedule(backend: str) -> None:
    batch = random_batch(TINY, 30)
    data = ImageSet("tiny", "train", batch["images"], batch["condition"], TINY.num_classes)
    schedule, adam = Schedule(4, 4, 1e-3, 0, 4, 4), Adam(0.5, 0.99, 1e-8, 1.0)
    method = Paired(2, schedule.updates, CosineClock(), Paired.Options(), TINY)
    updates = bench.training_updates(backend, method, schedule, adam, data)
    for turn, steps in {"together": [0, 3], "auxiliary": [1, 2]}.items():
        for step in [*steps, *steps]:
            measured, taken, rate = updates[turn]()
            assert isinstance(measured, Update)
            assert (taken, rate) == (turn, schedule.learning_rate_at(step))


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "REPEATS", 2)
    monkeypatch.setattr(bench, "WARM_UP", 1)
    calls: list[str] = []
    times = bench.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, block=3)
    assert "".join(calls) == "ab" + 2 * "aaabbb"
    assert {name: len(blocks) for name, blocks in times.items()} == {"a": 2, "b": 2}


def test_every_method_and_turn_has_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BLOCK", "REPEATS", "WARM_UP"):
        monkeypatch.setattr(bench, name, 1)
    monkeypatch.setattr(bench, "BACKENDS", ["torch"])  # the updates above are of both
    monkeypatch.setattr(bench, "beside_loops_by_hand", lambda *_: [])
    ablation = {**CONTENT["methods"][0], "variant": "ablation"}
    workspace = Workspace(write_profile(tmp_path / "mine.yaml", {"methods.0.steps": [1, 4, 2], "methods.1": ablation}))
    bench.run(workspace, tmp_path / "bench.json")
    rows = {row["quantity"]: row for row in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    assert list(rows) == [
        "teacher (teacher), denoise update, torch: harness / bare passes",
        f"{MATCHING} (k1), auxiliary update, torch: harness / bare passes",
        f"{MATCHING} (k1), student update, torch: harness / bare passes",
        "fewstep --help",
    ]
    for row in list(rows.values())[:3]:
        assert row["bar"] == 1.15
        assert row["ratio"] == pytest.approx(row["milliseconds"] / row["bare_milliseconds"], rel=0.05)
