"""CLIP (Radford et al. 2021) through open_clip: features for Frechet distances and CMMD, and the CLIP score.

Images pass through CLIP's own pre-processing: bicubic resize of the shorter side, central square, OpenAI's mean and
deviation. Features are the projected embeddings, not normalised. Weights: OpenAI's archives, MIT.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.model import build_model_from_openai_state_dict
from open_clip.pretrained import download_pretrained_from_url, get_pretrained_url
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from harness.errors import UserError
from harness.metrics.extractors import Extractor
from harness.metrics.pretrained import PRETRAINED, Weights
from harness.metrics.statistics import blocks
from harness.metrics.torch_networks import GREY, constructing, device, exact_inference, read_script, rgb, to_numpy

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
CMMD = f"rbf{CMMD_SIGMA:g}x{CMMD_SCALE:g}-v-statistic"
"""Name of the distance in metric identities: kernel, scale, and the estimator of the paper's own code."""

CAPTION = "{}"
CLIP_SCORE_SCALE = 100.0
CLIP_SCORE = f"{CLIP_SCORE_SCALE:g}*cosine, template {CAPTION!r}"
"""Name of the score in metric identities; negative cosines count as they are."""


@dataclass(frozen=True, eq=False)
class ClipExtractor(Extractor):
    """An extractor with a text encoder: captions -> embeddings (n, dimension)."""

    encode_text: Callable[[Sequence[str]], np.ndarray] = field(kw_only=True)


def load(name: str, weights: Weights) -> ClipExtractor:
    """Build the extractor from OpenAI's TorchScript archive; no logits. Raises UserError for another format."""
    with constructing(weights):
        state = read_script(weights).state_dict()
        network = build_model_from_openai_state_dict(state, cast_dtype=torch.float32).float().eval()
    network.to(device())
    size = network.visual.image_size[0]
    preprocess = image_transform_v2(PreprocessCfg(size=size), is_train=False)
    tokenise = open_clip.SimpleTokenizer(context_length=network.context_length)

    def forward(images: np.ndarray) -> tuple[np.ndarray, None]:
        pixels = torch.stack([preprocess(Image.fromarray(image)) for image in rgb(images).transpose(0, 2, 3, 1)])
        with exact_inference():
            return to_numpy(network.encode_image(pixels.to(device()))), None

    def encode_text(captions: Sequence[str]) -> np.ndarray:
        tokens = tokenise([CAPTION.format(caption) for caption in captions]).split(64)
        with exact_inference():
            return np.concatenate([to_numpy(network.encode_text(rows.to(device()))) for rows in tokens])

    dimension = network.visual.output_dim
    protocol = f"shorter-side-bicubic-{size}-crop, {GREY}"
    return ClipExtractor(name, weights.sha256, protocol, dimension, None, forward, batch=32, encode_text=encode_text)


def download(name: str, folder: Path) -> Path:
    """Fetch the published weights into `folder`."""
    model = Path(PRETRAINED[name].file).stem.removesuffix("px")
    return Path(download_pretrained_from_url(get_pretrained_url(model, "openai"), cache_dir=str(folder)))


def cmmd(generated: np.ndarray, reference: np.ndarray) -> float:
    """CLIP maximum mean discrepancy (Jayasumana et al. 2024): 1000 MMD^2 with exp(-|x - y|^2 / (2 sigma^2)), sigma 10.

    Of CLIP features (n, d) and (m, d), normalised here. As in the paper's code it is the biased V-statistic, pairs of
    an image with itself included, hence never negative. Raises UserError where a side is empty.
    """
    if not len(generated) or not len(reference):
        raise UserError("CMMD: needs images on both sides")
    x, y = generated, reference
    return CMMD_SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y))


def clip_score(image_features: np.ndarray, text_features: np.ndarray) -> float:
    """The mean of `clip_scores`."""
    return float(clip_scores(image_features, text_features).mean())


def clip_scores(image_features: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """100 cos(image, caption) (n,) of pairs of rows (n, d) (Hessel et al. 2021, without its factor and its clip).

    Raises UserError where the numbers of rows differ.
    """
    if image_features.shape != text_features.shape or not len(image_features):
        raise UserError(
            f"CLIP score: {len(text_features)} captions for {len(image_features)} images; give one for each"
        )
    scores: np.ndarray = CLIP_SCORE_SCALE * (_normalised(image_features) * _normalised(text_features)).sum(axis=1)
    return scores


def _normalised(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of k - 1 over all pairs of normalised rows: the ones cancel in the distance, and their digits with them."""
    total = 0.0
    for rows in blocks(len(x)):
        one = _normalised(x[rows])
        for columns in blocks(len(y)):  # of unit vectors: |a - b|^2 = 2 - 2 a.b
            total += float(np.expm1((one @ _normalised(y[columns]).T - 1) / CMMD_SIGMA**2).sum())
    return total / (len(x) * len(y))
