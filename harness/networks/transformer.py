"""A small diffusion transformer, apart from the framework: its sizes, and its initial weights drawn with NumPy.

The architecture is DiT (Peebles & Xie 2023): patches as tokens, time and class through adaptive layer norm whose gates
start at zero, an output that starts at zero, v-prediction. A caption enters in two ways: the mean of its tokens in the
place of the class, and each of them as a further key and value of every attention. The framework modules use the same
attribute names and the same (out, in) layout, so that a checkpoint serves both as it is. Attention has no key bias: its
true gradient is zero, and Adam would turn its rounding noise into full steps (queries and values have none either,
which costs nothing here).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.noise import Noise

MLP_RATIO = 4
LAYER_NORM_EPS = 1e-6
MASKED = -1e9
"""The attention score of padding: its weight is exactly zero, and so is its gradient."""
MAX_FREQUENCY = 200.0
"""The highest angular frequency of the time embedding, in radians per unit of t."""


Positions = Literal["small", "sincos"]


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
    text_width: int = 0
    """Values in a token of the captions; 0: conditions are classes."""
    positions: Positions = "small"
    """How the learned embeddings of the patches' places start: N(0, 0.02^2), or sines and cosines of row and column."""

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
        if self.text_width:
            linear["caption"] = (width, self.text_width)
        for i in range(self.depth):
            linear |= {
                f"blocks.{i}.modulation": (6 * width, width),
                f"blocks.{i}.attention_out": (width, width),
                f"blocks.{i}.mlp_in": (hidden, width),
                f"blocks.{i}.mlp_out": (width, hidden),
            }
        shapes: dict[str, tuple[int, ...]] = {"position": (self.tokens, width)}
        for name, shape in linear.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        shapes |= {f"blocks.{i}.qkv.weight": (3 * width, width) for i in range(self.depth)}
        if self.text_width:
            return shapes | {f"blocks.{i}.text_kv.weight": (2 * width, self.text_width) for i in range(self.depth)}
        return shapes | {"label": (self.num_classes + 1, width)}

    @property
    def n_parameters(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes().values())


def initial_weights(spec: TransformerSpec, seed: int) -> dict[str, np.ndarray]:
    """Initial weights, float32: linear layers uniform (Glorot), embeddings N(0, 0.02^2); biases, gates and output 0.

    The positions start as the spec says.
    """
    noise, weights = Noise(seed), {}
    for name, shape in sorted(spec.shapes().items()):
        zero = name.endswith(".bias") or "modulation" in name or name.startswith("patch_out")
        if zero:
            weights[name] = np.zeros(shape, np.float32)
        elif name == "position" and spec.positions == "sincos":
            weights[name] = places(spec)
        elif name in ("position", "label"):
            weights[name] = np.float32(0.02) * noise.normal(f"initial/{name}", 0, 0, 1, shape)[0]
        else:
            outputs = spec.width if "qkv" in name or "text_kv" in name else shape[0]  # of each of the matrices in one
            bound = np.float32(math.sqrt(6 / (outputs + shape[1])))
            weights[name] = bound * (2 * noise.uniform(f"initial/{name}", 0, 0, 1, shape)[0] - 1)
    return weights


def places(spec: TransformerSpec) -> np.ndarray:
    """Sines and cosines of each patch's row and column (tokens, width), float32, from 1 to 1/100 radian a patch."""
    grid, pairs = spec.size // spec.patch, spec.width // 4
    frequencies = np.geomspace(1.0, 0.01, pairs)
    row_and_column = np.divmod(np.arange(grid**2), grid)
    waves = [wave(place[:, None] * frequencies) for place in row_and_column for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


def initial_head(name: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Initial weights of a method's own head, float32: matrices (out, in) uniform (Glorot), all else zero."""
    noise, weights = Noise(seed), {}
    for key, shape in shapes.items():
        bound = np.float32(math.sqrt(6 / sum(shape)) if len(shape) == 2 else 0)
        weights[key] = bound * (2 * noise.uniform(f"initial/{name}/{key}", 0, 0, 1, shape)[0] - 1)
    return weights
