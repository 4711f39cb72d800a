"""From a stream of images to features or to their moments alone: the next batch is read while this one is extracted."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from harness.metrics.cache import FeatureCache
from harness.metrics.extractors import Extractor, Features
from harness.metrics.statistics import Moments


def in_batches(images: np.ndarray, extractor: Extractor) -> Iterator[np.ndarray]:
    """Consecutive batches of `images` (n, c, h, w), of the size that the extractor takes."""
    return (images[start : start + extractor.batch] for start in range(0, len(images), extractor.batch))


def stream(
    batches: Iterable[np.ndarray], extractor: Extractor, cache: FeatureCache | None = None
) -> Iterator[Features]:
    """Features of each batch of uint8 images (n, c, h, w); `cache` is used unless the extractor is cheap.

    One batch is read ahead, in a thread. Raises UserError as `Extractor.extract` does.
    """
    for images in _read_ahead(batches):
        if cache is not None and not extractor.cheap:
            yield cache.extract(images, extractor)
        else:
            yield extractor.extract(images, len(images))


def stream_moments(batches: Iterable[np.ndarray], extractor: Extractor, cache: FeatureCache | None = None) -> Moments:
    """Moments of the features, all that FID needs, in memory that does not grow with the number of images."""
    moments = Moments(extractor.dimension)
    for part in stream(batches, extractor, cache):
        moments.update(part.features)
    return moments


def gather(batches: Iterable[np.ndarray], n: int, extractor: Extractor, cache: FeatureCache | None = None) -> Features:
    """All features and logits of `n` images, float32: they are kept once, beside one batch."""
    features, logits, start = np.empty((n, extractor.dimension), np.float32), None, 0
    for part in stream(batches, extractor, cache):
        rows = slice(start, start + len(part.features))
        features[rows] = part.features
        if part.logits is not None:
            logits = np.empty((n, part.logits.shape[1]), np.float32) if logits is None else logits
            logits[rows] = part.logits
        start = rows.stop
    return Features(features, logits)


def _read_ahead(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    iterator = iter(batches)
    with ThreadPoolExecutor(max_workers=1) as reader:
        pending = reader.submit(next, iterator, None)
        while (batch := pending.result()) is not None:
            pending = reader.submit(next, iterator, None)
            yield batch
