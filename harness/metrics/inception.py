"""`inception-v3-compat`: the Inception-v3 of the original FID, with its TensorFlow-1 resize, as torch-fidelity has it.

Weights: Inception-v3 of 2015-12-05 (Szegedy et al. 2016; Heusel et al. 2017), converted by torch-fidelity; Apache-2.0.
"""

import io
from pathlib import Path

import numpy as np
import torch
from torch_fidelity import feature_extractor_inceptionv3 as inceptionv3

from harness.metrics.extractors import Extractor
from harness.metrics.pretrained import PRETRAINED, Weights
from harness.metrics.torch_networks import GREY, constructing, device, exact_inference, read_state, rgb, to_numpy

LAYERS = ["2048", "logits_unbiased"]  # of FID, KID, precision and recall; of the Inception score


def load(name: str, weights: Weights) -> Extractor:
    """Build the extractor: 2048 features and 1008 logits. Raises UserError for a file of another format."""
    with constructing(weights):
        read_state(weights)  # the library would unpickle anything
        network = inceptionv3.FeatureExtractorInceptionV3(name, LAYERS, io.BytesIO(weights.content))
    network.to(device())

    def forward(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with exact_inference():
            features, logits = network(torch.tensor(rgb(images), device=device()))
            return to_numpy(features), to_numpy(logits)

    return Extractor(name, weights.sha256, f"tf1-bilinear-299, {GREY}", 2048, None, forward, batch=32)


def download(name: str, folder: Path) -> Path:
    """Fetch the published weights into `folder`."""
    path = folder / PRETRAINED[name].file
    torch.hub.download_url_to_file(inceptionv3.URL_INCEPTION_V3, str(path))
    return path
