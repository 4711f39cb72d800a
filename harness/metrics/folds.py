"""Disjoint folds of a set of images, and the jackknife over them."""

from collections.abc import Sequence

import numpy as np

FOLDS = 10


def fold_of(labels: np.ndarray) -> np.ndarray:
    """The fold (n,) of each image, from 0: equally many of each class, as nearly as can be, and in order of index.

    Sets of images with equal `labels` (n,) are divided alike, so that images of one index, drawn from one noise, stand
    in one fold.
    """
    fold = np.empty(len(labels), np.int64)
    fold[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % FOLDS
    return fold


def jackknife_se(values: Sequence[float] | np.ndarray) -> float:
    """Standard error of a statistic, of its values (g,) without each of g equal folds.

    The grouped delete-d jackknife (Shao and Wu 1989): sqrt((g - 1) / g * sum (value - mean)^2). All values are of
    equally many images, hence have the same bias in n, which is not counted as error. Where FID is little more than
    its bias, at the level of real data, the error is overstated, by up to a half.
    """
    sample = np.asarray(values, np.float64)
    return float(np.sqrt((len(sample) - 1) * sample.var()))
