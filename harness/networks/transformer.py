"""A small diffusion transformer, apart from the framework: its sizes, and its initial weights drawn with NumPy.

The architecture is DiT (Peebles & Xie 2023): patches as tokens, time and class through adaptive layer norm whose gates
start at zero, an output that starts at zero, v-prediction. The framework modules use the same attribute names and the
same (out, in) layout, so that a checkpoint serves both as it is. Attention has no key bias: its true gradient is zero,
and Adam would turn its rounding noise into full steps (queries and values have none either, which costs nothing here).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.noise import Noise

MLP_RATIO = 4
LAYER_NORM_EPS = 1e-6
MAX_FREQUENCY = 200.0
"""The highest angular frequency of the time embedding, in radians per unit of t."""


@dataclass(frozen=True)
class TransformerSpec:
    """Sizes of the network: images (channels, size, size), patches of patch x patch pixels as tokens."""

    channels: int
    size: int
    patch: int
    width: int
    depth: int
    heads: int
    num_classes: int

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return (self.size // self.patch) ** 2

    @property
    def patch_dim(self) -> int:
        """Values in one patch."""
        return self.channels * self.patch**2

    @property
    def frequencies(self) -> np.ndarray:
        """Angular frequencies of the time embedding, (width / 2,) float32, geometrically spaced from 1."""
        return np.geomspace(1.0, MAX_FREQUENCY, self.width // 2).astype(np.float32)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape."""
        width, hidden = self.width, MLP_RATIO * self.width
        linear = {
            "patch_in": (width, self.patch_dim),
            "time_in": (width, width),
            "time_out": (width, width),
            "final_modulation": (2 * width, width),
            "patch_out": (self.patch_dim, width),
        }
        for i in range(self.depth):
            linear |= {
                f"blocks.{i}.modulation": (6 * width, width),
                f"blocks.{i}.attention_out": (width, width),
                f"blocks.{i}.mlp_in": (hidden, width),
                f"blocks.{i}.mlp_out": (width, hidden),
            }
        shapes: dict[str, tuple[int, ...]] = {"position": (self.tokens, width), "label": (self.num_classes + 1, width)}
        for name, shape in linear.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        return shapes | {f"blocks.{i}.qkv.weight": (3 * width, width) for i in range(self.depth)}

    @property
    def n_parameters(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes().values())


def initial_weights(spec: TransformerSpec, seed: int) -> dict[str, np.ndarray]:
    """Initial weights, float32: linear layers uniform (Glorot), embeddings N(0, 0.02^2); biases, gates and output 0."""
    noise, weights = Noise(seed), {}
    for name, shape in sorted(spec.shapes().items()):
        zero = name.endswith(".bias") or "modulation" in name or name.startswith("patch_out")
        if zero:
            weights[name] = np.zeros(shape, np.float32)
        elif name in ("position", "label"):
            weights[name] = np.float32(0.02) * noise.normal(f"initial/{name}", 0, 0, 1, shape)[0]
        else:
            bound = np.float32(math.sqrt(6 / (spec.width + spec.width if "qkv" in name else sum(shape))))
            weights[name] = bound * (2 * noise.uniform(f"initial/{name}", 0, 0, 1, shape)[0] - 1)
    return weights


def initial_head(name: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Initial weights of a method's own head, float32: matrices (out, in) uniform (Glorot), all else zero."""
    noise, weights = Noise(seed), {}
    for key, shape in shapes.items():
        bound = np.float32(math.sqrt(6 / sum(shape)) if len(shape) == 2 else 0)
        weights[key] = bound * (2 * noise.uniform(f"initial/{name}/{key}", 0, 0, 1, shape)[0] - 1)
    return weights
