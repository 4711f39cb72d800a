"""Handwritten digits, 8x8 pixels, ten classes: the UCI optical digits that scikit-learn carries in its wheel."""

import numpy as np
from sklearn.datasets import load_digits

from harness.datasets import ImageSet, Split

SPLIT_SEED = 0
HELDOUT_FRACTION = 0.1


def load(split: Split) -> ImageSet:
    """Load `split`: images (n, 1, 8, 8), n = 1618 (train), 179 (heldout) or 1797 (all), in shuffled order.

    The file is ordered by writer, so the split is drawn at random: a tail of the file would hold out unseen writers.
    It is drawn within each class, because generated classes are balanced and FID notices class proportions.
    """
    data = load_digits()
    # Raw Philox words rather than Generator.permutation: only the former stay the same in every NumPy version.
    order = np.argsort(np.random.Philox(key=SPLIT_SEED).random_raw(len(data.target)), kind="stable")
    images = (data.images[order, None] / 8 - 1).astype(np.float32)
    labels = data.target[order].astype(np.int64)
    heldout = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        heldout[members[: round(HELDOUT_FRACTION * len(members))]] = True
    order = np.argsort(heldout, kind="stable")
    images, labels, heldout = images[order], labels[order], heldout[order]
    chosen = {"train": ~heldout, "heldout": heldout, "all": np.ones_like(heldout)}[split]
    return ImageSet("digits", split, images[chosen], labels[chosen], num_classes=10)
