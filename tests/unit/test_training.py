"""The training loop on the smallest of teachers: finite check, log, results and lock."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.backends.base import Update
from harness.checkpoint import load_checkpoint
from harness.errors import UserError
from harness.method import Batch
from harness.noise import Noise
from harness.training import BatchStream, check_finite, locked
from tests.unit.training_runs import DATA, SCHEDULE, TINY, killed_at, log, make_run, train


def test_the_finite_check_names_step_turn_and_quantity() -> None:
    check_finite(Update(1.0, {"student": 2.0}, {"gap": 3.0}), 7, "student")
    for update, name in [
        (Update(float("nan"), {"student": 2.0}, {"gap": 3.0}), "loss is nan"),
        (Update(1.0, {"student": float("inf")}, {"gap": 3.0}), "gradient norm of the student is inf"),
        (Update(1.0, {"student": 2.0}, {"gap": float("-inf")}), "gap is -inf"),
    ]:
        with pytest.raises(UserError, match=f"update 7, student turn: the {name}; lower the learning rate"):
            check_finite(update, 7, "student")


def test_bad_data_stops_the_run_at_the_step_that_meets_it(tmp_path: Path) -> None:
    images = DATA["images"].copy()
    tenth = BatchStream("data", {"number": np.arange(10)}, Noise(0)).take(9, 1)["number"]
    images[tenth, 0, 0, 0] = np.nan  # of the third batch
    with pytest.raises(UserError, match="update 2, denoise turn: the loss is nan"):
        train(make_run(tmp_path, images=images))
    assert not (tmp_path / "teacher.safetensors").exists()


def test_a_huge_learning_rate_stops_the_run_and_leaves_the_last_checkpoint(tmp_path: Path, whole: Path) -> None:
    run = make_run(tmp_path)
    run.schedule = replace(SCHEDULE, learning_rate=1e30)
    killed_at(make_run(tmp_path), 5)
    with pytest.raises(UserError, match=r"update \d+, denoise turn: the .* is (nan|inf)") as error:
        train(run)
    assert "\n" not in str(error.value)
    state, manifest = load_checkpoint(tmp_path / "resume" / "state.safetensors")
    assert manifest["step"] == 4
    assert all(np.isfinite(tensor).all() for tensor in state.values())
    train(make_run(tmp_path))
    assert (tmp_path / "teacher.safetensors").read_bytes() == (whole / "teacher.safetensors").read_bytes()


def test_a_run_leaves_its_result_log_and_summary_and_nothing_else(whole: Path) -> None:
    names = ["second_moments.safetensors", "teacher.safetensors", "train.json", "train.jsonl"]
    assert sorted(path.name for path in whole.iterdir()) == names
    weights, _ = load_checkpoint(whole / "teacher.safetensors")
    assert {name: value.shape for name, value in weights.items()} == TINY.shapes()
    summary = json.loads((whole / "train.json").read_text())
    assert summary.keys() == {"params", "updates", "train_passes", "train_seconds", "peak_memory_mb"}
    assert (summary["params"], summary["updates"]) == (TINY.n_parameters, 23)
    assert summary["train_passes"] == 23 * 3 * SCHEDULE.batch, "one forward and one backward pass of each image"
    assert summary["train_seconds"] > 0
    assert summary["peak_memory_mb"] > 10


def test_second_moments_are_adams_average_of_the_squared_clipped_gradients(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    learner, adam = run.learner, run.learner.adam
    launch, moments = learner.launch, {name: np.zeros(shape) for name, shape in TINY.shapes().items()}

    def recorded(turn: str, batch: Batch, draws: Batch, *rest: Any) -> Callable[[], Update]:
        gradient = {name: g.astype(np.float64) for name, g in learner.gradients(turn, batch, draws)[1]["model"].items()}
        clip = min(1, adam.clip / np.sqrt(sum((g**2).sum() for g in gradient.values())))
        for name, g in gradient.items():
            moments[name] = adam.beta2 * moments[name] + (1 - adam.beta2) * (clip * g) ** 2
        return launch(turn, batch, draws, *rest)

    learner.launch = recorded
    train(run)
    saved, manifest = load_checkpoint(tmp_path / "second_moments.safetensors")
    assert (manifest["second_moments_of"], manifest["beta2"], manifest["eps"]) == ("model", adam.beta2, adam.eps)
    assert saved.keys() == moments.keys()
    for name, moment in moments.items():
        expected = moment / (1 - adam.beta2**SCHEDULE.updates)
        np.testing.assert_allclose(saved[name], expected, rtol=1e-3, atol=1e-6 * expected.max())


def test_the_log_has_a_line_for_each_interval(whole: Path) -> None:
    lines = log(whole)
    assert [line["update"] for line in lines] == [0, 5, 10, 15, 20, 22]
    for line in lines:
        assert line["turn"] == "denoise"
        assert line["learning_rate"] == SCHEDULE.learning_rate_at(line["update"])
        assert line["gradient_norm"].keys() == {"model"}
        assert line["logs"].keys() == {"squared_error"}
        assert line["loss"] > 0
        assert line["images_per_second"] > 0


def test_the_mean_loss_is_that_since_the_turns_previous_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, method_id="moment-matching/alternating")
    losses, update = [], run.update

    def recorded(step: int, following: int | None) -> tuple[Update, str, float]:
        result = update(step, following)
        losses.append((result[1], result[0].loss))
        return result

    run.update = recorded
    train(run)
    since = dict.fromkeys(run.method.turns, 0)
    for line in log(tmp_path):
        own = [loss for turn, loss in losses[since[line["turn"]] : line["update"] + 1] if turn == line["turn"]]
        assert line["mean_loss"] == pytest.approx(np.mean(own), rel=1e-12)
        since[line["turn"]] = line["update"] + 1


@pytest.mark.parametrize("killed", [None, 6, 8])
def test_the_log_has_a_line_for_each_turn_of_an_interval(tmp_path: Path, killed: int | None) -> None:
    if killed is not None:
        killed_at(make_run(tmp_path, method_id="moment-matching/alternating"), killed)
    train(make_run(tmp_path, method_id="moment-matching/alternating"))
    turns = ["auxiliary", "student"]
    written = [(line["update"], line["turn"]) for line in log(tmp_path)]
    assert written == [(step, turns[step % 2]) for step in (0, 1, 5, 6, 10, 11, 15, 16, 20, 21, 22)]
    assert all(line["gradient_norm"].keys() == {line["turn"]} for line in log(tmp_path))


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from harness.training import locked
with locked(Path({str(tmp_path / "resume")!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"{tmp_path}: another process is training here"):
                train(make_run(tmp_path))
        finally:
            holder.kill()
    with locked(tmp_path / "resume"):
        pass  # the lock died with its process


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=f"{tmp_path / 'missing'}: the output folder does not exist"),
        locked(tmp_path / "missing" / "resume"),
    ):
        pass
