"""Reference statistics: what an extractor sees in real images, kept with the identity of everything they depend on."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from harness.datasets import ImageSet
from harness.datasets.archive import load_arrays, save_arrays
from harness.errors import UserError
from harness.metrics.cache import FeatureCache
from harness.metrics.extraction import gather, in_batches
from harness.metrics.extractors import Extractor
from harness.metrics.images import QUANTISER
from harness.metrics.sources import ImageSource
from harness.metrics.statistics import Moments

Identity = dict[str, str | int]


@dataclass(frozen=True, eq=False)
class Reference:
    """Features (n, d) of one split of real images, and the identity under which they were computed."""

    features: np.ndarray
    identity: Identity

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the features."""
        return Moments(self.features.shape[1]).update(self.features)

    def save(self, path: Path | str) -> None:
        """Write features and identity to `path` (npz), atomically. Raises UserError where that fails."""
        save_arrays(path, features=self.features, identity=json.dumps(self.identity, sort_keys=True))

    @classmethod
    def load(cls, path: Path | str) -> "Reference":
        """Read what `save` wrote. Raises UserError where the file is absent or damaged."""
        features, identity = load_arrays(path, "features", "identity")
        try:
            return cls(features, json.loads(str(identity)))
        except json.JSONDecodeError:
            raise UserError(f"{path}: its identity is unreadable; delete the file and compute it anew") from None


def reference_identity(image_set: ImageSet, extractor: Extractor) -> Identity:
    """Everything that reference features depend on, by name or by hash."""
    return {
        "data": f"{image_set.name}/{image_set.split}",
        "data_digest": image_set.digest,
        "n_images": len(image_set),
        **extractor_identity(extractor),
        "quantiser": QUANTISER,
    }


def extractor_identity(extractor: Extractor) -> Identity:
    """Name, weights and resize: one file of weights may serve several protocols."""
    return {"extractor": extractor.name, "extractor_weights": extractor.weights_hash, "resize": extractor.resize}


def build_reference(image_set: ImageSet, extractor: Extractor, cache: FeatureCache | None = None) -> Reference:
    """Quantise the images and extract their features. Raises UserError where the extractor refuses the images."""
    features = gather(in_batches(image_set.pixels, extractor), len(image_set), extractor, cache).features
    return Reference(features, reference_identity(image_set, extractor))


def source_reference(source: ImageSource, extractor: Extractor, cache: FeatureCache | None = None) -> Reference:
    """Extract the features of the user's own images.

    Their identity names no file, so that equal images have it wherever they lie.
    """
    features = gather(source.batches(extractor.batch), len(source), extractor, cache).features
    identity: Identity = {"data": "images", "data_digest": source.digest, "n_images": len(source)}
    return Reference(features, identity | extractor_identity(extractor) | {"quantiser": source.quantiser})


def cached_reference(
    path: Path | str, image_set: ImageSet, extractor: Extractor, cache: FeatureCache | None = None
) -> Reference:
    """Read the reference at `path`; where there is none, or it has another identity, compute it and write it there.

    Raises UserError where the file is damaged, or cannot be written.
    """
    if Path(path).exists():
        reference = Reference.load(path)
        if reference.identity == reference_identity(image_set, extractor):
            return reference
    reference = build_reference(image_set, extractor, cache)
    reference.save(path)
    return reference
