"""The training loop on the smallest of teachers: finite check, log, checkpoints, resume and lock."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.backends import get_backend
from harness.backends.base import Adam, Learner, Update
from harness.checkpoint import load_checkpoint
from harness.diffusion import CosineClock
from harness.errors import UserError
from harness.method import Batch, Turn
from harness.networks.transformer import initial_weights
from harness.noise import Noise
from harness.registry import get_method
from harness.training import BatchStream, Run, Schedule, check_finite, locked
from tests.conftest import SPEC, random_batch

TINY = replace(SPEC, depth=1)
# the log and the checkpoints out of step, and a last interval that is not full
SCHEDULE = Schedule(updates=23, batch=4, learning_rate=1e-2, warmup_updates=5, checkpoint_every=4, log_every=5)
DATA = random_batch(TINY, 10)
KEY = "what the run depends on"


class Killed(BaseException):
    """Stands for the death of the process."""


def make_learner(method_id: str = "teacher") -> Learner:
    method = get_method(method_id)
    instance = method(2, 100, CosineClock(), method.Options(), TINY)
    weights = {name: initial_weights(TINY, 0) for name in instance.networks()}
    return get_backend("torch").learner(instance, TINY, weights, Adam(0.9, 0.99, 1e-8, 1.0))


def make_run(folder: Path, schedule: Schedule = SCHEDULE, images: np.ndarray = DATA["images"], **options: str) -> Run:
    folder.mkdir(exist_ok=True)
    stream = {"data": BatchStream("data", DATA | {"images": images}, Noise(0))}
    return Run(folder, get_backend("torch"), make_learner(**options), schedule, 0, stream)


def train(run: Run, key: str = KEY) -> None:
    run.train({"config": {}}, key, {"params": TINY.n_parameters}, "title")


def killed_at(run: Run, step: int, key: str = KEY) -> None:
    """Train until update number `step` has changed the weights but is not yet recorded."""
    done = run.update

    def dying(number: int, following: int | None) -> tuple[Update, str, float]:
        result = done(number, following)
        if number == step:
            raise Killed
        return result

    run.update = dying
    with pytest.raises(Killed):
        train(run, key)


def log(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def timeless(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(make_run(folder))
    return folder


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


@pytest.mark.parametrize("steps", [[3], [4], [22], [6, 6, 13, 13, 20]])
def test_a_killed_run_ends_in_the_bytes_of_a_whole_one(tmp_path: Path, whole: Path, steps: list[int]) -> None:
    for step in steps:
        killed_at(make_run(tmp_path), step)
        assert not (tmp_path / "teacher.safetensors").exists()
    train(make_run(tmp_path))
    assert (tmp_path / "teacher.safetensors").read_bytes() == (whole / "teacher.safetensors").read_bytes()
    assert timeless(log(tmp_path)) == timeless(log(whole)), "no line is lost, none is there twice"
    assert not (tmp_path / "resume").exists()


def test_a_resumed_run_does_only_what_is_left(tmp_path: Path) -> None:
    killed_at(make_run(tmp_path), 13)
    run, steps = make_run(tmp_path), []
    update = run.update

    def counted(step: int, following: int | None) -> tuple[Update, str, float]:
        steps.append(step)
        return update(step, following)

    run.update = counted
    train(run)
    assert steps == list(range(12, 23))


def test_a_log_that_was_torn_by_the_kill_is_mended(tmp_path: Path, whole: Path) -> None:
    killed_at(make_run(tmp_path), 6)
    with open(tmp_path / "resume" / "train.jsonl", "a") as file:
        file.write('{"update": 5, "tur')
    train(make_run(tmp_path))
    assert timeless(log(tmp_path)) == timeless(log(whole))


def test_the_time_before_the_kill_counts(tmp_path: Path) -> None:
    killed_at(make_run(tmp_path), 6)
    state = tmp_path / "resume" / "state.safetensors"
    elapsed = load_checkpoint(state)[1]["elapsed"]
    assert elapsed > 0
    run = make_run(tmp_path)
    train(run)
    assert run.elapsed > elapsed


def test_a_resume_state_of_another_key_is_discarded_with_a_notice(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(tmp_path)
    other.schedule = replace(SCHEDULE, learning_rate=1e-3)
    killed_at(other, 13, key="something else")
    capsys.readouterr()
    train(make_run(tmp_path))
    assert f"{tmp_path}: starting anew, because" in capsys.readouterr().out
    assert (tmp_path / "teacher.safetensors").read_bytes() == (whole / "teacher.safetensors").read_bytes()
    assert timeless(log(tmp_path)) == timeless(log(whole))


KEEPING = replace(SCHEDULE, snapshot_every=5)


@pytest.mark.parametrize("steps", [[], [3], [6], [6, 13, 22]])
def test_snapshots_are_the_results_of_shorter_ways_and_survive_kills(
    tmp_path: Path, whole: Path, steps: list[int]
) -> None:
    for step in steps:
        killed_at(make_run(tmp_path, KEEPING), step)
        assert not (tmp_path / "snapshots").exists()
    kept, run = {}, make_run(tmp_path / "watched", KEEPING)
    update = run.update

    def watched(step: int, following: int | None) -> tuple[Update, str, float]:
        result = update(step, following)
        kept[step + 1] = {name: value.copy() for name, value in run.learner.weights("teacher").items()}
        return result

    run.update = watched
    for folder, training in ((tmp_path, make_run(tmp_path, KEEPING)), (tmp_path / "watched", run)):
        train(training)
        names = [f"update{done}.safetensors" for done in (10, 15, 20, 5)]
        assert sorted(path.name for path in (folder / "snapshots").iterdir()) == names
        assert not (folder / "resume").exists()
        assert (folder / "teacher.safetensors").read_bytes() == (whole / "teacher.safetensors").read_bytes()
    for name in names:
        content, manifest = load_checkpoint(tmp_path / "snapshots" / name)
        assert (tmp_path / "watched" / "snapshots" / name).read_bytes() == (tmp_path / "snapshots" / name).read_bytes()
        for key, value in kept[manifest["update"]].items():
            np.testing.assert_array_equal(content[key], value)


def test_snapshots_of_another_run_are_discarded(tmp_path: Path) -> None:
    other = make_run(tmp_path, replace(KEEPING, snapshot_every=3))
    killed_at(other, 13, key="something else")
    train(make_run(tmp_path, KEEPING))
    assert len(list((tmp_path / "snapshots").iterdir())) == 4


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-1] + b"!"])
def test_a_damaged_resume_state_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    killed_at(make_run(tmp_path), 6)
    state = tmp_path / "resume" / "state.safetensors"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(UserError, match=f"{state}: .*delete it"):
        train(make_run(tmp_path))


def test_a_resume_state_without_its_log_is_no_reason_to_stop(tmp_path: Path, whole: Path) -> None:
    killed_at(make_run(tmp_path), 6)
    (tmp_path / "resume" / "train.jsonl").unlink()
    train(make_run(tmp_path))
    assert (tmp_path / "teacher.safetensors").read_bytes() == (whole / "teacher.safetensors").read_bytes()


def test_two_examples_for_each_sample_come_with_an_axis_of_their_own(tmp_path: Path) -> None:
    run, seen = make_run(tmp_path), []
    method_class = type("Pairs", (type(run.method),), {"sources": {"data": 2}})
    run.method = method_class(2, 100, CosineClock(), run.method.options, TINY)

    def launch(turn: str, batch: Batch, *_: object) -> Callable[[], Update]:
        seen.append(batch)
        return lambda: Update(0.0, {}, {})

    run.learner.launch = launch
    for step in range(3):
        run.update(step)
    assert [batch["images"].shape for batch in seen] == [(4, 2, 1, 4, 4)] * 3
    expected = BatchStream("data", DATA, Noise(0)).take(0, 24)
    np.testing.assert_array_equal(
        np.concatenate([batch["images"] for batch in seen]).reshape(24, 1, 4, 4), expected["images"]
    )
    np.testing.assert_array_equal(
        np.concatenate([batch["condition"] for batch in seen]).reshape(24), expected["condition"]
    )


def test_a_turn_gets_the_sources_that_it_names_and_no_place_moves(tmp_path: Path) -> None:
    """Update 3 reads the fourth batch of a source, whether or not the updates before it read any."""
    run = make_run(tmp_path)
    turns = {"some": Turn(("teacher",), sources=("data",)), "all": Turn(("teacher",))}
    attributes = {"sources": {"data": 1, "pairs": 1}, "turns": turns, "turn": lambda _, step: ["some", "all"][step % 2]}
    run.method = type("Two", (type(run.method),), attributes)(2, 100, CosineClock(), run.method.options, TINY)
    run.data = {source: BatchStream(source, DATA, Noise(0)) for source in ("data", "pairs")}
    for step in range(4):
        batch, _ = run._inputs(step)
        expected = {"": run.data["data"].take(4 * step, 4)}
        if step % 2:
            expected["pairs/"] = run.data["pairs"].take(4 * step, 4)
        assert batch.keys() == {prefix + name for prefix, arrays in expected.items() for name in arrays}
        for prefix, arrays in expected.items():
            for name, array in arrays.items():
                np.testing.assert_array_equal(batch[prefix + name], array)


def test_the_next_inputs_are_prepared_while_the_device_works(tmp_path: Path) -> None:
    run, events, given = make_run(tmp_path), [], []
    inputs = run._inputs

    def prepared(step: int) -> tuple[Batch, Batch]:
        events.append(("inputs", step))
        return inputs(step)

    def launch(turn: str, batch: Batch, draws: Batch, *_: object) -> Callable[[], Update]:
        events.append(("launch", len(given)))
        given.append((batch, draws))
        return lambda: events.append(("wait", len(given) - 1)) or Update(0.0, {}, {})

    run._inputs, run.learner.launch = prepared, launch
    for step, following in ((0, 1), (1, 2), (2, None)):
        run.update(step, following)
    order = [(what, step) for step in range(3) for what in ("launch", "inputs", "wait")]
    assert events == [("inputs", 0), *((w, s + (w == "inputs")) for w, s in order if (w, s) != ("inputs", 2))]
    for step, (batch, draws) in enumerate(given):
        for found, expected in zip((batch, draws), inputs(step), strict=True):
            assert found.keys() == expected.keys()
            for key in expected:
                np.testing.assert_array_equal(found[key], expected[key])


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
