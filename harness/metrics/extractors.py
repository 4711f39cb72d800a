"""Feature extractors: classifiers, addressed by their weights' hash, that turn images into features and logits."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from harness.errors import UserError
from harness.metrics.images import require_uint8

# name -> module with `load() -> Extractor`; modules are imported on use because their libraries are heavy
EXTRACTORS = {"digits-cnn": "harness.metrics.digits_cnn"}


@dataclass(frozen=True, eq=False)
class Features:
    """What an extractor saw: features (n, dimension) and logits (n, classes), both float64 and finite."""

    features: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True, eq=False)
class Extractor:
    """A fixed classifier.

    weights_hash: SHA-256 (hex) of the weights file; resize: the name of the resize protocol ("none": images enter at
    their own size); dimension: width of the features; image_shape: the accepted (c, h, w); forward: uint8 images ->
    (features, logits), without regard to the other images of the batch.
    """

    name: str
    weights_hash: str
    resize: str
    dimension: int
    image_shape: tuple[int, int, int]
    forward: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

    def extract(self, images: np.ndarray, batch_size: int = 500) -> Features:
        """Extract features and logits of uint8 images (n, *image_shape), `batch_size` images at a time.

        Raises UserError for another dtype or shape, and where a feature or logit is not finite.
        """
        require_uint8(f"images for the extractor '{self.name}'", images, self.image_shape)
        batches = [self.forward(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
        features, logits = (
            np.concatenate(parts).astype(np.float64, copy=False) for parts in zip(*batches, strict=True)
        )
        for quantity, values in (("features", features), ("logits", logits)):
            if not np.isfinite(values).all():
                raise UserError(f"{quantity} of the extractor '{self.name}' are not finite; check its weights")
        return Features(features, logits)


def load_extractor(name: str) -> Extractor:
    """Load the extractor `name`. Raises UserError for an unknown name, or weights other than the pinned ones."""
    if name not in EXTRACTORS:
        raise UserError(f"unknown extractor '{name}'; known: {', '.join(sorted(EXTRACTORS))}")
    extractor: Extractor = import_module(EXTRACTORS[name]).load()
    return extractor
