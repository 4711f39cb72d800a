"""LPIPS, the learned perceptual distance of images (Zhang et al. 2018), version 0.1 on VGG16's features.

One definition over the array API, but for the convolution, which is the backends' own. The weights are the user's: the
published files of torchvision's VGG16 and of the linear heads that the package lpips brings (weights/v0.1/vgg.pth).
Pooling takes the maximum, as there; Song et al. 2023 took the average on ImageNet, the maximum on CIFAR-10.
"""

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from array_api_compat import array_namespace, device

from harness.diffusion import Array
from harness.errors import UserError
from harness.method import Ops, Pretrained

FOLDER = "FEWSTEP_LPIPS"
"""The environment variable that names the folder of the two files; unset: the current one."""
FILES = {
    "vgg16-397923af.pth": "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "vgg.pth": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}
"""Name and SHA-256 of VGG16's weights, and of the heads'."""
SIZE = 224
"""Pixels that images are resized to, bilinearly: VGG16's own size, as with Song et al. 2023 and DMD."""
SHIFT_AND_SCALE = (-0.030, 0.458), (-0.088, 0.448), (-0.188, 0.450)
"""Of red, green and blue in [-1, 1]: the normalisation of ImageNet's images, as LPIPS rounds it."""
BLOCKS = (0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)
"""torchvision's numbers of VGG16's convolutions. Between the blocks lies max pooling; each has a head at its end."""


def files() -> list[Path]:
    """The user's two files. Raises UserError where one of them is missing."""
    paths = [Path(os.environ.get(FOLDER, ""), name) for name in FILES]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{path}: no such file, and the metric lpips needs it; set {FOLDER} to the folder that holds "
                f"{' and '.join(FILES)}, or metric to l2"
            )
    return paths


def read(paths: list[Path]) -> dict[str, np.ndarray]:
    """The parameters of features and heads, by their names in the two files.

    Raises UserError where a file is not the published one, which is found out before it is parsed.
    """
    for path, expected in zip(paths, FILES.values(), strict=True):
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise UserError(f"{path}: not the published file (its SHA-256 is {found}, not {expected}); get it anew")
    try:
        import torch
    except ImportError:
        raise UserError("LPIPS's files are read with PyTorch; install it: pip install 'fewstep[torch]'") from None
    loaded = [torch.load(path, map_location="cpu", weights_only=True) for path in paths]
    tensors = {name: tensor for state in loaded for name, tensor in state.items()}
    return {name: tensor.numpy() for name, tensor in tensors.items() if name.startswith(("features.", "lin"))}


def distance(params: Mapping[str, Array], x: Array, y: Array, ops: Ops, size: int = SIZE) -> Array:
    """LPIPS (batch,) between images (batch, 1 or 3, height, width) in [-1, 1], resized to `size`, a multiple of 16.

    The squared distance of the features, each pixel's scaled to unit length over the channels; weighted by the head,
    averaged over the pixels and summed over the blocks (Zhang et al. 2018, equation 1).
    """
    xp = array_namespace(x)
    levels = zip(_features(params, x, ops, size), _features(params, y, ops, size), strict=True)
    weighted = [params[f"lin{i}.model.1.weight"] * (_unit(a) - _unit(b)) ** 2 for i, (a, b) in enumerate(levels)]
    return sum(xp.mean(xp.sum(level, axis=1), axis=(1, 2)) for level in weighted)


LPIPS = Pretrained(files, read, distance)


def _features(params: Mapping[str, Array], x: Array, ops: Ops, size: int) -> list[Array]:
    """What the heads see: the features at the end of every block, (batch, channels, side, side)."""
    xp = array_namespace(x)
    if x.shape[2:] != (size, size):
        rows, columns = (xp.asarray(_interpolation(old, size), dtype=x.dtype, device=device(x)) for old in x.shape[2:])
        x = rows @ x @ columns.T
    x = xp.stack([(x[:, i % x.shape[1]] - shift) / scale for i, (shift, scale) in enumerate(SHIFT_AND_SCALE)], axis=1)
    ends: list[Array] = []
    for block in BLOCKS:
        if ends:
            batch, channels, height, width = x.shape
            x = xp.max(xp.reshape(x, (batch, channels, height // 2, 2, width // 2, 2)), axis=(3, 5))
        for layer in block:
            x = ops.conv(x, params[f"features.{layer}.weight"], params[f"features.{layer}.bias"])
            x = xp.clip(x, min=0.0)
        ends.append(x)
    return ends


def _unit(x: Array) -> Array:
    """Features at unit length over the channels; where all are zero they stay so, without the root's gradient there."""
    xp = array_namespace(x)
    return x / (xp.sqrt(xp.clip(xp.sum(x**2, axis=1, keepdims=True), min=1e-20)) + 1e-10)


@cache
def _interpolation(old: int, new: int) -> np.ndarray:
    """The matrix (new, old) of bilinear resizing along one side, between the centres of pixels; nothing is averaged."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)))
