"""Shared fixtures: one thread for every framework on the CPU, tiny networks, and the two backends."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
if os.environ["JAX_PLATFORMS"] == "cpu":  # compilation for a GPU needs its threads
    os.environ["PJRT_NPROC"], os.environ["XLA_FLAGS"] = "1", "--xla_cpu_multi_thread_eigen=false"

for _name in [name for name in os.environ if name.startswith("GIT_")]:  # set in a hook, they would name its repository
    del os.environ[_name]

from typing import Any

import numpy as np
import pytest

from harness.conditions import Text
from harness.networks.transformer import TransformerSpec, initial_weights
from harness.noise import Noise
from tests.pretrained import clip_file, dinov2_folder, inception_file, inception_network, torchscript_file  # noqa: F401

SPEC = TransformerSpec(channels=1, size=4, patch=2, width=16, depth=2, heads=2, num_classes=3)


@pytest.fixture
def spec() -> TransformerSpec:
    """A network for 4x4 images, small enough for finite differences."""
    return SPEC


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    """Generic weights: the initial ones plus noise, so that no gate or output is zero."""
    return generic_weights(SPEC, 0)


def generic_weights(spec: TransformerSpec, seed: int) -> dict[str, np.ndarray]:
    """Initial weights plus N(0, 0.1^2) noise, float32."""
    noise = Noise(seed)
    initial = initial_weights(spec, seed)
    return {
        name: value + np.float32(0.1) * noise.normal(f"test/{name}", 0, 0, 1, value.shape)[0]
        for name, value in initial.items()
    }


def random_batch(spec: TransformerSpec, count: int, seed: int = 0) -> dict[str, Any]:
    """Random images (count, channels, size, size) in [-1, 1] and labels, or captions where the network reads them."""
    noise = Noise(seed)
    images = 2 * noise.uniform("test/images", 0, 0, count, (spec.channels, spec.size, spec.size)) - 1
    labels = (noise.uniform("test/labels", 0, 0, count) * spec.num_classes).astype(np.int64)
    condition = random_captions(spec, count, seed) if spec.text_width else labels
    return {"images": images.astype(np.float32), "condition": condition}


def random_captions(spec: TransformerSpec, count: int, seed: int = 0, longest: int = 3) -> Text:
    """Captions of none to `longest` random tokens, in turn; unlike an encoder's, their padding is random as well."""
    tokens = Noise(seed).normal("test/captions", 0, 0, count, (longest, spec.text_width))
    return Text(tokens, np.arange(longest) < (np.arange(count) % (longest + 1))[:, None])
