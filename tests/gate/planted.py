"""Faults that people make in this code, planted: which of them the gate sees, and which it is too coarse for.

`python -m tests.gate.planted FAULT PROFILE RESULTS` runs what RESULTS lacks with one of them.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness import moment_matching, samplers
from harness.diffusion import Array, Gaussian, Level, posterior
from harness.method import Average, Ops, Start
from harness.moment_matching import AlternatingMomentMatching
from harness.teacher import Teacher
from harness.verbs import data, evaluate, reference, sample
from harness.verbs.train import train
from harness.workspace import Workspace

LOSS = AlternatingMomentMatching.loss
NETWORKS = Teacher.networks


def upper_bound(z_t: Array, x: Array, t: Level, s: Level, tuned: float = 0.0) -> Gaussian:
    """The posterior with the variance of q(z_t | z_s) instead of q(z_s | z_t, x)."""
    return posterior(z_t, x, t, s, 1.0)


class NoStop:
    """Operations that stop no gradient."""

    def stop_gradient(self, x: Array) -> Array:
        return x


def unstopped(self: Any, turn: str, nets: Any, batch: Any, draws: Any, reduced: None, ops: Ops) -> Any:
    """The bracket g_phi(z_s) - g_theta(z_s), and z_s in it, carry gradients to the student."""
    return LOSS(self, turn, nets, batch, draws, reduced, NoStop())  # type: ignore[arg-type]


def swapped(self: Any, turn: str, nets: Mapping[str, Any], batch: Any, draws: Any, reduced: None, ops: Ops) -> Any:
    """Each of the two networks in the other's place in the loss, not in what is trained."""
    nets = {**nets, "student": nets["auxiliary"], "auxiliary": nets["student"]}
    return LOSS(self, turn, nets, batch, draws, reduced, ops)


def without_teacher(
    self: Any, turn: str, nets: Mapping[str, Any], batch: Any, draws: Any, reduced: None, ops: Ops
) -> Any:
    """The auxiliary's loss without its term in g_theta, which vanishes with its gradient where g_theta is sg[g_phi]."""
    if turn == "auxiliary":
        nets = {**nets, "teacher": nets["auxiliary"]}
    return LOSS(self, turn, nets, batch, draws, reduced, ops)


def live_weights(self: Teacher) -> dict[str, Start]:
    """The teacher's average without a memory."""
    starts = NETWORKS(self)
    return {name: replace(s, decay=lambda step: 0.0) if isinstance(s, Average) else s for name, s in starts.items()}


Fault = Callable[[], AbstractContextManager[Any]]
of_alternating = partial(partial, patch.object, AlternatingMomentMatching)
CAUGHT: dict[str, Fault] = {
    "posterior variance, in sampling": partial(patch.object, samplers, "posterior", upper_bound),
    "posterior variance, in training": partial(patch.object, moment_matching, "posterior", upper_bound),
    "no stop-gradient of the bracket": of_alternating("loss", unstopped),
    "student and auxiliary swapped, in the result": of_alternating("result", "auxiliary"),
    "student and auxiliary swapped, in the loss": of_alternating("loss", swapped),
}
TOO_SMALL: dict[str, Fault] = {
    "no teacher term in the auxiliary's loss": of_alternating("loss", without_teacher),
    "no EMA of the teacher": partial(patch.object, Teacher, "networks", live_weights),
}
FAULTS = CAUGHT | TOO_SMALL


def run_missing(workspace: Workspace) -> None:
    """Every verb of the profile's runs, in this process; runs that have their records are left alone."""
    if not workspace.floor.exists():
        data.run(workspace)
        reference.run(workspace)
    for address in workspace.runs():
        records = [workspace.run(address) / f"metrics-{setting.name}.json" for setting in workspace.settings(address)]
        if not all(record.exists() for record in records):
            train(workspace, address)
            sample.run(workspace, **vars(address))
            evaluate.run(workspace, **vars(address))


if __name__ == "__main__":
    with FAULTS[sys.argv[1]]():
        run_missing(Workspace(sys.argv[2], Path(sys.argv[3])))
