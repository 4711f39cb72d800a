"""Faults too small for the gate's FID: the oracle agrees with the code as it is, and not with the fault planted."""

from pathlib import Path

import numpy as np
import pytest

from harness.backends import get_backend
from harness.backends.base import Adam
from harness.diffusion import CosineClock
from harness.moment_matching import MomentMatchingOptions
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from harness.teacher import Teacher, TeacherOptions
from harness.training import BatchStream, Run, Schedule
from tests.conftest import generic_weights, random_batch
from tests.gate.planted import TOO_SMALL
from tests.oracle.test_losses import losses, matching_losses

UPDATES = 30


def average_error(folder: Path, spec: TransformerSpec, backend: str) -> float:
    """How far a teacher's result lies from the average of its weights after every update, in float64; relative."""
    method = Teacher(1, UPDATES, CosineClock(), TeacherOptions(ema_decay=0.9), spec)
    start = {name: generic_weights(spec, 0) for name in ("model", "teacher")}
    engine = get_backend(backend)
    learner = engine.learner(method, spec, start, Adam(beta1=0.9, beta2=0.99, eps=1e-8, clip=1.0))
    data = {"data": BatchStream("data", random_batch(spec, 64), Noise(0))}
    run = Run(folder, engine, learner, Schedule(UPDATES, 16, 1e-2, 0, UPDATES, UPDATES), 0, data)
    average = {name: value.astype(np.float64) for name, value in start["model"].items()}
    for step in range(UPDATES):
        run.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * live for name, live in learner.weights("model").items()}
    result = learner.weights(method.result)
    gap = sum(float(np.sum((result[name] - average[name]) ** 2)) for name in average)
    return (gap / sum(float(np.sum(value**2)) for value in average.values())) ** 0.5


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_teacher_without_its_average(tmp_path: Path, spec: TransformerSpec, backend: str) -> None:
    assert average_error(tmp_path, spec, backend) < 1e-6
    with TOO_SMALL["no EMA of the teacher"]():
        assert average_error(tmp_path, spec, backend) > 1e-3


def auxiliary_error(spec: TransformerSpec) -> float:
    """The auxiliary's loss against the one written by hand; relative."""
    options = MomentMatchingOptions(weight="edm")
    values, (nets, x, labels, draws) = losses(spec, "moment-matching/alternating", options)
    by_hand = matching_losses(nets["teacher"], nets["student"], nets["auxiliary"], x, labels, draws)[0]().item()
    return abs(values["auxiliary"] - by_hand) / by_hand


def test_an_auxiliary_that_does_not_see_the_teacher(spec: TransformerSpec) -> None:
    assert auxiliary_error(spec) < 1e-4
    with TOO_SMALL["no teacher term in the auxiliary's loss"]():
        assert auxiliary_error(spec) > 0.1
