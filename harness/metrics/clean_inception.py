"""Inception-v3 as clean-fid has it, with its three protocols (Parmar et al. 2022); features alone, no logits.

clean: Pillow's bicubic filter to 299 pixels, antialiased and not quantised; legacy-pytorch: bilinear, not antialiased,
as pytorch-fid; legacy-tensorflow: the resize inside of the network's TorchScript archive (TensorFlow is not needed).
Weights: for clean and legacy-tensorflow the TorchScript archive of NVIDIA's StyleGAN2-ADA (whose licence covers
non-commercial use), for legacy-pytorch those of pytorch-fid (Apache-2.0).
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cleanfid import downloads_helper, inception_pytorch
from cleanfid.resize import build_resizer
from torch import Tensor, nn

from harness.metrics.extractors import Extractor
from harness.metrics.pretrained import PRETRAINED, Weights
from harness.metrics.torch_networks import (
    GREY,
    constructing,
    device,
    exact_inference,
    read_script,
    read_state,
    resized,
    to_numpy,
)

RESIZE = {
    "inception-v3-clean": "clean-bicubic-299",
    "inception-v3-legacy-pytorch": "legacy-pytorch-bilinear-299",
    "inception-v3-legacy-tensorflow": "legacy-tensorflow-bilinear-299",
}


def load(name: str, weights: Weights) -> Extractor:
    """Build the extractor: 2048 features. Raises UserError for a file of another format."""
    mode = name.removeprefix("inception-v3-").replace("-", "_")
    with warnings.catch_warnings():  # of the process: clean-fid silences them for good
        resize = build_resizer(mode)
    with constructing(weights):
        module, network = _pytorch(weights) if mode == "legacy_pytorch" else _torchscript(weights, mode == "clean")
    module.to(device())

    def forward(images: np.ndarray) -> tuple[np.ndarray, None]:
        with exact_inference():
            return to_numpy(network(resized(images, resize).to(device()))), None

    return Extractor(name, weights.sha256, f"{RESIZE[name]}, {GREY}", 2048, None, forward, batch=32)


def download(name: str, folder: Path) -> Path:
    """Fetch the published weights into `folder`."""
    if name == "inception-v3-legacy-pytorch":
        path = folder / PRETRAINED[name].file
        torch.hub.download_url_to_file(inception_pytorch.FID_WEIGHTS_URL, str(path))
        return path
    return Path(downloads_helper.check_download_inception(fpath=str(folder)))


def _torchscript(weights: Weights, resized_outside: bool) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    script = read_script(weights)
    layers = script.layers

    def network(images: Tensor) -> Tensor:
        features = layers((images - 128) / 128) if resized_outside else script(images, return_features=True)
        return features.view(len(images), 2048)

    return script, network


def _pytorch(weights: Weights) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    state, original = read_state(weights), inception_pytorch.load_state_dict_from_url
    # the only way into clean-fid's network leads through the function that downloads its weights
    inception_pytorch.load_state_dict_from_url = lambda url, progress: state
    try:
        module = inception_pytorch.InceptionV3(resize_input=False).eval()
    finally:
        inception_pytorch.load_state_dict_from_url = original
    return module, lambda images: module(images / 255)[0].flatten(1)
