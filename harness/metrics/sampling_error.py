"""What a finite number of images does to FID: its sampling error, by a jackknife, and its bias, by extrapolation.

Both work on moments of disjoint folds of the images, which are never drawn again with replacement: duplicates act as
fewer images do and make FID larger, so that a bootstrap's values are those of another quantity.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.metrics.folds import FOLDS, fold_of, jackknife_se
from harness.metrics.scores import fid
from harness.metrics.statistics import Moments


def fid_uncertainty(
    features: np.ndarray, labels: np.ndarray, reference: Moments, parts: Sequence[int] = ()
) -> dict[str, Any]:
    """What the number of images does to the FID of `features` (n, d), drawn for the classes `labels` (n,).

    Returns fid_folds, the FID without each of ten folds, which pairs with that of other images of the same labels and
    noise; fid_log_se, the jackknife's standard error of log FID; and with `parts` (of `config.PARTS`) also fid_by_n,
    the FID of fewer images by their number, and fid_infinity, its extrapolation. The cost is one distance for each fold
    and each part. Raises UserError with fewer than two images in a part.
    """
    folds = fold_moments(features, labels)
    without = fids_without_each_fold(folds, reference)
    found: dict[str, Any] = {"fid_folds": without}
    if min(without) > 0:  # else the images are those of the reference, and nothing is uncertain
        found["fid_log_se"] = jackknife_se(np.log(without))
    if parts:
        by_n = fid_against_n(folds, reference, parts)
        found |= {"fid_by_n": by_n, "fid_infinity": fid_at_infinity(by_n)}
    return found


def fold_moments(features: np.ndarray, labels: np.ndarray) -> list[Moments]:
    """The moments of each fold of `features` (n, d)."""
    fold = fold_of(labels)
    return [Moments(features.shape[1]).update(features[fold == j]) for j in range(FOLDS)]


def fids_without_each_fold(folds: Sequence[Moments], reference: Moments) -> list[float]:
    """FID of all images but those of one fold, for each fold: as many distances as folds."""
    return [fid(merged([*folds[:j], *folds[j + 1 :]]), reference) for j in range(len(folds))]


def fid_against_n(folds: Sequence[Moments], reference: Moments, parts: Sequence[int]) -> dict[int, float]:
    """By number of images n // p, the mean FID of p disjoint parts, for each p of `parts` and for the whole.

    Every image counts once at each number, so that the values share their sampling error and differ by bias alone.
    """
    found = {}
    for p in sorted({1, *parts}, reverse=True):
        divided = [merged(folds[start::p]) for start in range(p)]
        n = sum(part.count for part in divided) // p
        found[n] = float(np.mean([fid(part, reference) for part in divided]))
    return found


def fid_at_infinity(by_n: dict[int, float]) -> float:
    """FID for infinitely many images: the intercept of the line through FID against 1 / n (Chong and Forsyth 2020)."""
    n, values = (np.array(list(column), np.float64) for column in (by_n.keys(), by_n.values()))
    return float(np.polynomial.Polynomial.fit(1 / n, values, 1)(0.0))


def merged(folds: Sequence[Moments]) -> Moments:
    """The moments of several folds together."""
    whole = Moments(len(folds[0].mean))
    for fold in folds:
        whole.merge(fold)
    return whole
