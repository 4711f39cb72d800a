"""What the text encoders in PyTorch share: how a network is built from its files, and run in batches."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from harness.metrics.torch_networks import DAMAGED, device, exact_inference, to_numpy
from harness.text_encoders import TextFeatures
from harness.text_encoders.pretrained import WeightFiles

BATCH = 64
"""Captions at a time: the largest T5 needs less than 2 GB for their activations."""


@contextmanager
def constructing(weights: WeightFiles) -> Iterator[None]:
    """While a network is built from its files: global random state is kept, and what does not fit raises UserError."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, about each other's deprecated functions
            yield
    except (*DAMAGED, AssertionError, OSError, SafetensorError) as error:
        raise weights.refuse(error) from None


def features(forward: Callable[[Tensor, Tensor], Tensor], ids: Tensor, mask: Tensor) -> TextFeatures:
    """What a network on `device()`, -> (batch, T, dimension), makes of token numbers (n, T) and a mask, bool (n, T)."""
    with exact_inference():
        states = [
            to_numpy(forward(rows.to(device()), own.to(device())).where(own.to(device())[..., None], 0))
            for rows, own in zip(ids.split(BATCH), mask.split(BATCH), strict=True)
        ]
    return TextFeatures(np.concatenate(states), mask.numpy())
