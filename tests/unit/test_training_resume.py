"""A training run that is killed, at any update, goes on from its last checkpoint and ends in the same bytes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.backends.base import Update
from harness.checkpoint import load_checkpoint
from harness.errors import UserError
from tests.unit.training_runs import SCHEDULE, killed_at, log, make_run, timeless, train


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
