"""Feature extractors: networks, addressed by their weights' hash, that turn images into features and logits."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from harness.errors import UserError
from harness.metrics import pretrained
from harness.metrics.config import ExtractorConfig
from harness.metrics.images import require_uint8
from harness.validation import suggest

# name -> module with `load() -> Extractor`; modules are imported on use because their libraries are heavy.
# These are committed with their weights, which `train_extractor` makes and `validate` measures;
# `pretrained.PRETRAINED` has those that read published weights.
EXTRACTORS = {
    "digits-cnn": "harness.metrics.digits_cnn",
    "shapes-cnn": "harness.metrics.shapes_cnn",
    "shapes-clip": "harness.metrics.shapes_clip",
}


@dataclass(frozen=True, eq=False)
class Features:
    """What an extractor saw, finite: features (n, dimension) and logits (n, classes) or None.

    float64 as an extractor returns them, float32 where they are kept.
    """

    features: np.ndarray
    logits: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Extractor:
    """A fixed network.

    weights_hash: SHA-256 (hex) of the weights file; resize: the name of the protocol from 8-bit image to the network's
    input ("none": images enter at their own size); dimension: width of the features; image_shape: the accepted
    (c, h, w), or None for RGB and grey images of any size; forward: uint8 images -> (features, logits or None), without
    regard to the other images of the batch; batch: how many images fit into the memory of any machine;
    cheap: whether to extract again takes less than to keep features on disk.
    """

    name: str
    weights_hash: str
    resize: str
    dimension: int
    image_shape: tuple[int, int, int] | None
    forward: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    batch: int = 500
    cheap: bool = False

    def extract(self, images: np.ndarray, batch_size: int | None = None) -> Features:
        """Extract features and logits of uint8 images (n, *image_shape), `batch_size` images at a time.

        Raises UserError for another dtype or shape, and where a feature or logit is not finite.
        """
        require_uint8(f"images for the extractor '{self.name}'", images, self.image_shape)
        size = batch_size or self.batch
        batches = [self.forward(images[start : start + size]) for start in range(0, len(images), size)]
        features = self._join("features", [features for features, _ in batches])
        logits = [logits for _, logits in batches if logits is not None]
        return Features(features, self._join("logits", logits) if logits else None)

    def _join(self, quantity: str, batches: list[np.ndarray]) -> np.ndarray:
        values = np.concatenate(batches).astype(np.float64, copy=False)
        if not np.isfinite(values).all():
            raise UserError(f"{quantity} of the extractor '{self.name}' are not finite; check its weights")
        return values


def load_extractor(config: ExtractorConfig | str) -> Extractor:
    """Load an extractor, named or configured.

    Raises UserError for an unknown name, for weights that are absent or other than the pinned or stated ones, and where
    a library that it needs is not installed.
    """
    config = ExtractorConfig(name=config) if isinstance(config, str) else config
    module = module_of(config)
    with pretrained.libraries_for(f"the extractor {config.name!r}"):
        if config.name in EXTRACTORS:
            extractor: Extractor = import_module(module).load()
        else:
            extractor = import_module(module).load(config.name, pretrained.read(config))
    return extractor


def require_available(config: ExtractorConfig) -> None:
    """Raise UserError where an extractor is unknown or its weights file is absent; loads nothing."""
    module_of(config)
    if config.name in pretrained.PRETRAINED:
        pretrained.locate(config)


def module_of(config: ExtractorConfig) -> str:
    """The module that loads an extractor. Raises UserError for an unknown name, or weights that it does not take."""
    if config.name in EXTRACTORS:
        if config.weights is not None:
            raise UserError(f"the extractor {config.name!r} is committed with its weights and takes no others")
        return EXTRACTORS[config.name]
    if config.name in pretrained.PRETRAINED:
        return pretrained.PRETRAINED[config.name].module
    raise UserError(f"unknown extractor {config.name!r}; {suggest(config.name, [*EXTRACTORS, *pretrained.PRETRAINED])}")


CLIPS = ("harness.metrics.clip", "harness.metrics.shapes_clip")
"""Modules whose extractors embed captions beside images: `clip.ClipExtractor`."""


def require_clip(config: ExtractorConfig) -> None:
    """Raise UserError where an extractor embeds no captions, without which there is no CLIP score."""
    if module_of(config) not in CLIPS:
        raise UserError(f"{config.name!r} is no CLIP, which the CLIP score needs; name one, for example clip-vit-l-14")
