"""All scores of one set of generated images, the identity that makes them comparable, and the real-data floor."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.datasets import ImageSet
from harness.errors import UserError
from harness.metrics.cache import FeatureCache
from harness.metrics.extraction import gather, in_batches
from harness.metrics.extractors import Extractor, Features
from harness.metrics.images import require_uint8
from harness.metrics.reference import Identity, Reference, extractor_identity
from harness.metrics.sampling_error import fid_uncertainty
from harness.metrics.scores import (
    PROTOCOL,
    class_distance,
    fid,
    inception_score,
    kid,
    nearest_neighbour_distance,
    precision_recall,
)
from harness.metrics.statistics import Moments

FLOOR_DRAWS = 32


def metric_identity(
    extractor: Extractor, reference: Reference, n_samples: int, label_policy: str, further: Identity | None = None
) -> tuple[Identity, str]:
    """What must be equal for two numbers to be compared, and its digest (12 hexadecimal digits).

    label_policy names how the classes of the n_samples images were chosen, e.g. "balanced"; `further` is what else the
    numbers depend on. Raises UserError where `reference` was computed with another extractor.
    """
    _require_match(extractor, reference)
    identity = reference.identity | {"scores": PROTOCOL, "n_samples": n_samples, "label_policy": label_policy}
    identity |= further or {}
    return identity, identity_digest(identity)


def identity_digest(identity: Identity) -> str:
    """12 hexadecimal digits that are equal where identities are."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def evaluate_images(
    images: np.ndarray,
    labels: np.ndarray,
    extractor: Extractor,
    reference: Reference,
    reference_heldout: Reference | None,
    train_images: np.ndarray,
    cache: FeatureCache | None = None,
    *,
    uncertainty: bool = False,
    fid_parts: Sequence[int] = (),
) -> dict[str, Any]:
    """Score generated `images`, uint8 (n, c, h, w), against a reference; their order does not matter much.

    The reference is the split whose classes or captions the images were drawn for, `labels` (n,) the classes. Returns
    fid, is, is_std (both None where the extractor has no logits), kid, kid_std, precision, recall (fractions),
    class_distance (between features within a class), fid_heldout (FID to the held-out split, None where that is not
    given) and nn_distance (to `train_images`, uint8; pixels in [-1, 1]); with `uncertainty` also what `fid_uncertainty`
    says of fid, given `fid_parts`, at the cost of ten further distances and one for each part. Raises UserError for
    another dtype or shape, too few images (below 10, or below 2 of every class), a reference of another extractor, or a
    value that is not finite.
    """
    require_uint8("images", images, extractor.image_shape)
    require_uint8("train_images", train_images, images.shape[1:])
    if labels.shape != images.shape[:1]:
        raise UserError(f"labels must be ({len(images)},), one for each image, not {labels.shape}")
    for given in (reference, reference_heldout):
        if given is not None:
            _require_match(extractor, given)
    generated = gather(in_batches(images, extractor), len(images), extractor, cache)
    moments = Moments(extractor.dimension).update(generated.features)
    scores = feature_scores(generated, moments, reference)
    scores["class_distance"] = class_distance(generated.features, labels)
    scores["fid_heldout"] = None if reference_heldout is None else fid(moments, reference_heldout.moments)
    scores["nn_distance"] = nearest_neighbour_distance(images, train_images)
    require_finite(scores, extractor)
    if uncertainty:
        return scores | fid_uncertainty(generated.features, labels, reference.moments, fid_parts)
    return scores


def feature_scores(generated: Features, moments: Moments, reference: Reference) -> dict[str, float | None]:
    """fid, is, is_std, kid, kid_std, precision and recall of generated features, whose moments are given too.

    The Inception score and its deviation are None where the extractor has no logits. Raises UserError for too few rows.
    """
    scores: dict[str, float | None] = {"fid": fid(moments, reference.moments), "is": None, "is_std": None}
    if generated.logits is not None:
        scores["is"], scores["is_std"] = inception_score(generated.logits)
    scores["kid"], scores["kid_std"] = kid(generated.features, reference.features)
    scores["precision"], scores["recall"] = precision_recall(generated.features, reference.features)
    return scores


def require_finite(scores: dict[str, float | None], extractor: Extractor) -> None:
    """Raise UserError for a score that is NaN or infinite."""
    for name, value in scores.items():
        if value is not None and not np.isfinite(value):
            raise UserError(f"{name} is {value}: the images cannot be scored with '{extractor.name}'")


def real_data_floor(
    split: ImageSet,
    heldout: ImageSet,
    n: int,
    seed: int,
    extractor: Extractor,
    reference: Reference,
    reference_heldout: Reference | None,
    cache: FeatureCache | None = None,
    *,
    train_images: np.ndarray | None = None,
) -> dict[str, float | None]:
    """Score `n` images drawn with replacement from a split against it: what no generator can be expected to beat.

    The split is the training set, or another one with `train_images`, uint8.

    Returns the scores of `evaluate_images`, except that fid is the mean over several draws, because a single draw's
    varies by a quarter of it, and class_distance that of the split, because draws with replacement pair images
    with themselves; fid_std, the deviation over draws; and nn_distance_heldout: the held-out images' mean distance to
    the training set, which is what nn_distance should be without memorisation. Raises UserError as `evaluate_images`
    does.
    """
    train_images = split.pixels if train_images is None else train_images
    draws = (np.random.Philox(key=seed).random_raw(n * FLOOR_DRAWS) % np.uint64(len(split))).reshape(FLOOR_DRAWS, n)
    first, labels = split.pixels[draws[0]], split.labels[draws[0]]
    scores = evaluate_images(first, labels, extractor, reference, reference_heldout, train_images, cache)
    fids = [fid(Moments(extractor.dimension).update(reference.features[rows]), reference.moments) for rows in draws]
    fid_of_draws = {"fid": float(np.mean(fids)), "fid_std": float(np.std(fids, ddof=1))}
    distances = {
        "class_distance": class_distance(reference.features, split.labels),
        "nn_distance_heldout": nearest_neighbour_distance(heldout.pixels, train_images),
    }
    return scores | fid_of_draws | distances


def _require_match(extractor: Extractor, reference: Reference) -> None:
    own = extractor_identity(extractor)
    if any(reference.identity.get(key) != value for key, value in own.items()):
        raise UserError(
            f"the reference of '{reference.identity['data']}' was computed with another extractor than "
            f"'{extractor.name}' as it is now; compute the reference anew"
        )
