"""What the pretrained networks share: the device, exact arithmetic, RGB input, and the reading of their files."""

import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.metrics.pretrained import Weights

GREY = "grey as RGB"
"""Part of the name of every resize protocol here: grey images are repeated in three channels."""

DAMAGED = (RuntimeError, ValueError, LookupError, AttributeError, TypeError, EOFError, pickle.UnpicklingError)
"""What PyTorch and the libraries raise for files that are not what they expect."""


def device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rgb(images: np.ndarray) -> np.ndarray:
    """Images (n, 1 or 3, h, w) with three channels."""
    return np.repeat(images, 3, axis=1) if images.shape[1] == 1 else images


@contextmanager
def exact_inference() -> Iterator[None]:
    """No gradients, no TF32, no autotuning: on a GPU these change features from run to run and from batch to batch."""
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), cudnn:
        yield


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor of any device as float32."""
    return tensor.float().cpu().numpy()


@contextmanager
def constructing(weights: Weights) -> Iterator[None]:
    """While a network is built from a file: global random state is kept, and what does not fit raises UserError."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, about each other's deprecated functions
            yield
    except DAMAGED as error:
        raise weights.refuse(error) from None


def read_state(weights: Weights) -> dict[str, Tensor]:
    """A state dict that torch.save wrote; nothing but tensors is unpickled."""
    state: dict[str, Tensor] = torch.load(io.BytesIO(weights.content), map_location="cpu", weights_only=True)
    return state


def read_script(weights: Weights) -> Any:
    """A TorchScript archive, on the CPU, for inference."""
    return torch.jit.load(io.BytesIO(weights.content), map_location="cpu").eval()


def resized(images: np.ndarray, resize: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """RGB images (n, 3, h, w), each put through a resizer of (h, w, 3) arrays; float32 (n, 3, h', w')."""
    rows = np.stack([resize(image) for image in rgb(images).transpose(0, 2, 3, 1)])
    return torch.from_numpy(np.ascontiguousarray(rows.transpose(0, 3, 1, 2), dtype=np.float32))
