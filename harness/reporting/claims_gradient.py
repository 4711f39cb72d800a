"""Claim C10, computed: at k = 1 and from pure noise, Algorithm 2 and Diff-Instruct have the same student gradient."""

import numpy as np
from array_api_compat import array_namespace

from harness.backends import get_backend
from harness.backends.base import Adam, Weights
from harness.diffusion import Array, CosineClock, Level
from harness.method import Method
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from harness.registry import get_method
from harness.reporting.claims_evidence import ALTERNATING

DIFF_INSTRUCT = "diff-instruct"
SPEC = TransformerSpec(channels=1, size=4, patch=2, width=16, depth=1, heads=2, num_classes=3)
BATCH = 16


def pure_noise_clock(t: Array) -> Level:
    """The cosine clock with alpha exactly 0 at t = 1."""
    xp = array_namespace(t)
    logsnr = CosineClock()(t).logsnr
    return Level.from_logsnr(xp.where(t < 1, logsnr, -xp.inf * xp.ones_like(logsnr)))


def gradient_distance(backend: str, method: str = DIFF_INSTRUCT, **options: str) -> float:
    """||a - b|| / ||a|| for the student gradients a of Algorithm 2 and b of another method, of one random network.

    Both see the same three networks (different from each other), images, s, draws and flat weight; k = 1, discrete t.
    """
    noise = Noise(0)
    weights = {
        name: {key: 0.3 * noise.normal(f"{name}/{key}", 0, 0, 1, shape)[0] for key, shape in SPEC.shapes().items()}
        for name in ("teacher", "student", "auxiliary")
    }
    batch = {"images": noise.normal("images", 0, 0, BATCH, (1, 4, 4)), "condition": np.arange(BATCH) % SPEC.num_classes}
    ours = _method(ALTERNATING, times="discrete")
    draws = ours.draw(noise, 0, 0, BATCH)
    a, b = (_gradient(backend, one, weights, batch, draws) for one in (ours, _method(method, **options)))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def _method(name: str, **options: str) -> Method:
    kind = get_method(name)
    return kind(1, 1, pure_noise_clock, kind.Options.model_validate({"weight": "flat", **options}), SPEC)


def _gradient(
    backend: str,
    method: Method,
    weights: dict[str, Weights],
    batch: dict[str, np.ndarray],
    draws: dict[str, np.ndarray],
) -> np.ndarray:
    """The gradient in all of the student's parameters, flat."""
    learner = get_backend(backend).learner(method, SPEC, weights, Adam(0.0, 0.99, 1e-8, 1.0))
    _, gradients = learner.gradients("student", batch, draws)
    return np.concatenate([gradients["student"][key].ravel() for key in sorted(gradients["student"])])
