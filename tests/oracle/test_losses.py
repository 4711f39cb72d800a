"""The losses against those written by hand for the benchmark, which share nothing with the harness but the network."""

from typing import Any

import numpy as np
import pytest
import torch

from harness.backends import get_backend
from harness.backends.base import Adam
from harness.backends.torch_bare import make_network, matching_losses, teacher_loss
from harness.diffusion import CosineClock
from harness.moment_matching import MomentMatchingOptions
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from harness.registry import get_method
from harness.teacher import TeacherOptions
from tests.conftest import generic_weights, random_batch

ADAM = Adam(beta1=0.0, beta2=0.99, eps=1e-12, clip=1.0)


def losses(spec: TransformerSpec, method_id: str, options: object) -> tuple[dict[str, float], tuple[Any, ...]]:
    """Each turn's loss in the harness, and the batch and draws as tensors."""
    method = get_method(method_id)(4, 100, CosineClock(), options, spec)
    weights = {name: generic_weights(spec, seed) for seed, name in enumerate(method.networks())}
    batch, draws = random_batch(spec, 64), method.draw(Noise(0), 0, 0, 64)
    learner = get_backend("torch").learner(method, spec, weights, ADAM)
    values = {turn: learner.gradients(turn, batch, draws)[0] for turn in method.turns}
    nets = {name: make_network(spec, values) for name, values in weights.items()}
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in draws.items()}
    return values, (nets, torch.from_numpy(batch["images"]), torch.from_numpy(batch["condition"]), tensors)


def test_the_teachers_loss_is_the_squared_error_in_v(spec: TransformerSpec) -> None:
    values, (nets, x, labels, draws) = losses(spec, "teacher", TeacherOptions(weight="snr+1", label_dropout=0.5))
    assert draws["hide"].any()
    assert values["denoise"] == pytest.approx(teacher_loss(nets["model"], x, labels, draws).item(), rel=1e-4)


def test_both_turns_of_algorithm_2(spec: TransformerSpec) -> None:
    values, (nets, x, labels, draws) = losses(spec, "moment-matching/alternating", MomentMatchingOptions(weight="edm"))
    auxiliary, student = matching_losses(nets["teacher"], nets["student"], nets["auxiliary"], x, labels, draws)
    assert values["auxiliary"] == pytest.approx(auxiliary().item(), rel=1e-4)
    assert values["student"] == pytest.approx(student().item(), rel=1e-4)
    assert abs(values["student"]) > 1e-2
