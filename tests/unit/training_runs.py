"""Training runs of the smallest of teachers, whole or killed, and their logs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.backends import get_backend
from harness.backends.base import Adam, Learner, Update
from harness.diffusion import CosineClock
from harness.networks.transformer import initial_weights
from harness.noise import Noise
from harness.registry import get_method
from harness.training import BatchStream, Run, Schedule
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
