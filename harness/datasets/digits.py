"""Handwritten digits, 8x8 pixels, ten classes: the UCI optical digits that scikit-learn carries in its wheel."""

import numpy as np
from sklearn.datasets import load_digits

from harness.datasets import ImageSet, Split, split_rows

HELDOUT_FRACTION = 0.1


def load(split: Split) -> ImageSet:
    """Load `split`: images (n, 1, 8, 8), n = 1618 (train), 179 (heldout) or 1797 (all), in shuffled order.

    The file is ordered by writer, so the split is drawn at random: a tail of the file would hold out unseen writers.
    """
    data = load_digits()
    rows = split_rows(data.target, split, HELDOUT_FRACTION)
    images = (data.images[rows, None] / 8 - 1).astype(np.float32)
    return ImageSet("digits", split, images, data.target[rows].astype(np.int64), num_classes=10)
