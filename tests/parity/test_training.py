"""The two backends agree: loss, every gradient, parameters after twenty updates, and samples from one checkpoint."""

from functools import partial

import numpy as np
import pytest

from harness.backends import get_backend
from harness.backends.base import Adam
from harness.diffusion import CosineClock
from harness.method import Average, Method
from harness.moment_matching import MomentMatchingOptions
from harness.networks.transformer import TransformerSpec, initial_weights
from harness.noise import Noise
from harness.prompts import class_prompts
from harness.registry import get_method
from harness.samplers import draw_images, equal_times, sampling_step
from harness.teacher import TeacherOptions
from harness.training import BatchStream, Schedule
from tests.conftest import generic_weights, random_batch

DIGITS = TransformerSpec(channels=1, size=8, patch=4, width=64, depth=3, heads=4, num_classes=10)
PAPER = Adam(beta1=0.0, beta2=0.99, eps=1e-12, clip=1.0)
CASES = [
    ("teacher", TeacherOptions()),
    *(
        ("moment-matching/alternating", MomentMatchingOptions(weight=weight, transition=transition, times=times))
        for weight, transition, times in [
            ("edm", "posterior", "continuous"),
            ("flat", "unconditional", "discrete"),
            ("dmd-adaptive", "ddim", "continuous"),
        ]
    ),
]


def make(method_id: str, options: object, spec: TransformerSpec, k: int = 4) -> Method:
    return get_method(method_id)(k, 1000, CosineClock(), options, spec)


def distinct_weights(method: Method, spec: TransformerSpec) -> dict[str, dict[str, np.ndarray]]:
    return {name: generic_weights(spec, seed) for seed, name in enumerate(method.networks())}


@pytest.mark.parametrize(("method_id", "options"), CASES)
def test_loss_and_every_gradient(method_id: str, options: object) -> None:
    method = make(method_id, options, DIGITS)
    batch, weights = random_batch(DIGITS, 32), distinct_weights(method, DIGITS)
    draws = method.draw(Noise(1), 0, 0, 32)
    for turn in method.turns:
        (loss_a, a), (loss_b, b) = (
            get_backend(name).learner(method, DIGITS, weights, PAPER).gradients(turn, batch, draws)
            for name in ("torch", "jax")
        )
        assert abs(loss_a - loss_b) <= 1e-5 * abs(loss_a)
        for network in a:
            whole = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in a[network].values()))
            assert whole > 0.1, "a vanishing gradient would make the comparison empty"
            for key, gradient in a[network].items():
                scale = max(float(np.linalg.norm(gradient)), 1e-3 * whole)
                assert np.linalg.norm(gradient - b[network][key]) <= 1e-5 * scale, (turn, network, key)


@pytest.mark.parametrize(("method_id", "options"), CASES[:2])
def test_parameters_after_twenty_updates(method_id: str, options: object) -> None:
    method = make(method_id, options, DIGITS)
    schedule = Schedule(1000, 32, 1e-3, 100, 500, 50)
    data, weights = random_batch(DIGITS, 100), distinct_weights(method, DIGITS)
    if method_id == "teacher":
        weights = {name: initial_weights(DIGITS, 0) for name in weights}
    results = []
    for backend in ("torch", "jax"):
        learner = get_backend(backend).learner(method, DIGITS, weights, PAPER)
        stream, noise = BatchStream("data", data, Noise(0)), Noise(0)
        for step in range(20):
            starts = method.networks().items()
            decays = {name: start.decay(step) for name, start in starts if isinstance(start, Average)}
            rate = schedule.learning_rate_at(step)
            learner.update(method.turn(step), stream.take(32 * step, 32), method.draw(noise, step, 0, 32), rate, decays)
        results.append({name: learner.weights(name) for name in method.networks()})
    for name, torch_weights in results[0].items():
        a, b, start = (
            np.concatenate([w[key].ravel() for key in sorted(w)]).astype(np.float64)
            for w in (torch_weights, results[1][name], weights[name])
        )
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(a)
        assert name == "teacher" or np.linalg.norm(a - start) > 1e-3 * np.linalg.norm(a), "the networks must move"


@pytest.mark.parametrize("family", ["ancestral", "ddim", "renoise"])
def test_samples_from_one_checkpoint(family: str, spec: TransformerSpec, weights: dict[str, np.ndarray]) -> None:
    images = []
    for name in ("torch", "jax"):
        backend = get_backend(name)
        step = partial(sampling_step, CosineClock(), family, 0.0)
        batches = draw_images(
            backend.denoiser_step(spec, weights, step, CosineClock(), guidance=0.5), backend.to_numpy,
            equal_times(8), (1, 4, 4), class_prompts(spec.num_classes).condition, 40, 16, 0, family != "ddim",
        )  # fmt: skip
        images.append(np.concatenate(list(batches)))
    assert images[0].std() > 0.1
    assert np.linalg.norm(images[0] - images[1]) <= 1e-4 * np.linalg.norm(images[0])
