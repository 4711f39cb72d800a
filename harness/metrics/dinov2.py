"""`dinov2-vit-l-14`: DINOv2's class token (Oquab et al. 2023), for the Frechet distance of Stein et al. (2023).

Images are resized to 224 pixels by Pillow's bicubic filter, not quantised, and normalised by ImageNet's mean and
deviation. Weights: facebook/dinov2-large, Apache-2.0.
"""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from cleanfid.resize import make_resizer
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from transformers import Dinov2Config, Dinov2Model
from transformers.utils import logging

from harness.metrics.extractors import Extractor
from harness.metrics.pretrained import DINOV2_REVISION, PRETRAINED, Weights
from harness.metrics.torch_networks import GREY, constructing, device, exact_inference, resized, to_numpy

SIZE = 224
HEAD_WIDTH = 64  # of every DINOv2
MEAN, DEVIATION = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def load(name: str, weights: Weights) -> Extractor:
    """Build the extractor: 1024 features, no logits. Raises UserError for a file of another format.

    The size of the network is read off the weights, so that their hash says everything.
    """
    with constructing(weights):
        network: Any = _network(weights).eval()
    network.to(device())
    resize = make_resizer("PIL", False, "bicubic", (SIZE, SIZE))

    def forward(images: np.ndarray) -> tuple[np.ndarray, None]:
        with exact_inference():
            pixels = (resized(images, resize) / 255 - MEAN) / DEVIATION
            return to_numpy(network(pixels.to(device())).pooler_output), None

    protocol = f"clean-bicubic-{SIZE}, {GREY}"
    return Extractor(name, weights.sha256, protocol, network.config.hidden_size, None, forward, batch=32)


def download(name: str, folder: Path) -> Path:
    """Fetch the published weights into the hub's cache; `folder` is not used."""
    return Path(hf_hub_download("facebook/dinov2-large", PRETRAINED[name].file, revision=DINOV2_REVISION))


def _network(weights: Weights) -> Any:
    try:
        state = safetensors.torch.load(weights.content)
    except SafetensorError as error:
        raise ValueError(error) from None
    width, _, _, patch = state["embeddings.patch_embeddings.projection.weight"].shape
    positions = state["embeddings.position_embeddings"].shape[1] - 1  # without the class token's
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layer.")),
        num_attention_heads=width // HEAD_WIDTH,
        patch_size=patch,
        image_size=patch * round(positions**0.5),
    )
    logging.disable_progress_bar()
    loaded: Any = Dinov2Model.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    network, info = loaded
    if wrong := sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]) + sorted(info["mismatched_keys"]):
        raise ValueError(f"tensor {wrong[0]}")
    return network
