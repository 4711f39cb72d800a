"""Scores of generated images against a reference, every free choice fixed, each in float64 and in bounded memory.

Features are (n, d) of any floating-point type, generated first and reference second. They are taken to float64 a block
at a time: neither a float64 copy of them nor an n x n matrix is ever held. The choices are torch-fidelity's.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from harness.errors import UserError
from harness.metrics.statistics import Moments, blocks

SEED = 2020
IS_SPLITS = 10
KID_SUBSETS = 100
KID_SUBSET_SIZE = 500
PRC_NEIGHBOURS = 3

# The choices above, named: part of every metric identity. Raise the last number when a score's definition or arithmetic
# changes.
PROTOCOL = f"is{IS_SPLITS}-kid{KID_SUBSETS}x{KID_SUBSET_SIZE}-prc{PRC_NEIGHBOURS}-seed{SEED}-v2"


def fid(generated: Moments, reference: Moments) -> float:
    """Frechet distance of two Gaussians (Heusel et al. 2017): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    Covariances may be singular: fewer samples than dimensions, or features that never vary. Raises UserError where
    either side has fewer than two samples.
    """
    from scipy.linalg import svdvals

    # With C = L L^T, eigenvalues of C1 C2 are squares of the singular values of L1^T L2, whose sum is as accurate
    # as the covariances are. Eigenvalues of a product are not: the square root of one of rounding's size, 1e-16, is
    # 1e-8, and there are as many as dimensions. Against 80-digit arithmetic at 24 dimensions, with singular, identical
    # and badly scaled covariances of trace 24, this is off by at most 2e-8; the eigenvalues of L1^T C2 L1 by 5e-8, with
    # a symmetric square root for L1 by 2e-7; those of C1 C2 by 5e-7.
    covariances = generated.covariance, reference.covariance
    first, second = map(_cholesky, covariances)
    nuclear_norm = svdvals(first.T @ second, overwrite_a=True, check_finite=False).sum()
    shift = generated.mean - reference.mean
    return float(shift @ shift + sum(map(np.trace, covariances)) - 2 * nuclear_norm)


def inception_score(logits: np.ndarray) -> tuple[float, float]:
    """Inception score of logits (n, classes) (Salimans et al. 2016): mean and deviation over 10 shuffled splits.

    Raises UserError with fewer than 10 rows.
    """
    _require_samples("inception score", len(logits), IS_SPLITS)
    order = np.random.RandomState(SEED).permutation(len(logits))  # the splits of torch-fidelity
    bounds = [split * len(logits) // IS_SPLITS for split in range(IS_SPLITS + 1)]
    scores = [_split_score(logits, order[start:stop]) for start, stop in itertools.pairwise(bounds)]
    return float(np.mean(scores)), float(np.std(scores))


def kid(generated: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Kernel distance (Binkowski et al. 2018): unbiased MMD^2 with the kernel (x.y / d + 1)^3.

    Mean and deviation over 100 subsets of 500; of the smaller side's size where that is below 500. It may be slightly
    negative. Raises UserError with fewer than 2 rows on a side.
    """
    size = min(KID_SUBSET_SIZE, len(generated), len(reference))
    _require_samples("kernel distance", size, 2)
    draw = np.random.RandomState(SEED)  # the subsets of torch-fidelity
    distances = []
    for _ in range(KID_SUBSETS):
        x, y = (side[draw.choice(len(side), size, replace=False)].astype(np.float64) for side in (generated, reference))
        within = _kernel(x, x) + _kernel(y, y)
        distances.append((within.sum() - np.trace(within)) / (size * (size - 1)) - 2 * _kernel(x, y).mean())
    return float(np.mean(distances)), float(np.std(distances))


def precision_recall(generated: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), k = 3, both in [0, 1].

    The larger side is cut to the smaller one's size by a seeded draw, because either value grows with the number of
    balls in the other side's manifold; the cost is quadratic in that size. Raises UserError with fewer than 4 rows.
    """
    size = min(len(generated), len(reference))
    _require_samples("precision and recall", size, PRC_NEIGHBOURS + 1)
    generated, reference = _subset(generated, size), _subset(reference, size)
    centre = reference.mean(axis=0, dtype=np.float64)
    radii_generated, radii_reference = (_squared_radii(side, centre) for side in (generated, reference))
    covered_generated, covered_reference = np.zeros(size, bool), np.zeros(size, bool)
    for rows, columns, squared in _squared_distances(generated, reference, centre):
        covered_generated[rows] |= (squared <= radii_reference[columns]).any(axis=1)
        covered_reference[columns] |= (squared <= radii_generated[rows, None]).any(axis=0)
    return float(covered_generated.mean()), float(covered_reference.mean())


def nearest_neighbour_distance(images: np.ndarray, train_images: np.ndarray) -> float:
    """Mean Euclidean distance, in pixels of [-1, 1], of each image to its nearest training image; 0: all are copies.

    Both arrays are uint8 (n, c, h, w). Squared distances of 8-bit levels are integers, hence exact in float64.
    """
    first, second = (side.reshape(len(side), -1) for side in (images, train_images))
    nearest = np.full(len(images), np.inf)
    for rows, _, squared in _squared_distances(first, second, np.zeros(first.shape[1])):
        np.minimum(nearest[rows], squared.min(axis=1), out=nearest[rows])
    return float(np.sqrt(nearest).mean()) / 127.5


def class_distance(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean Euclidean distance between the features of two images of one class: the diversity within classes.

    Over all pairs of different images, averaged first within each class of `labels` (n,), then over classes, so that
    sets of any size and any balance of classes compare. A class of one image has no pair and is left out. Raises
    UserError where no class has two images.
    """
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    _require_samples("class distance, the largest class", max(map(len, classes), default=0), 2)
    return float(np.mean([_mean_distance(features[members]) for members in classes if len(members) > 1]))


def _cholesky(covariance: np.ndarray) -> np.ndarray:
    """L (d, rank) with L L^T = covariance, by pivots; what is left is below d times rounding and is dropped."""
    from scipy.linalg.lapack import dpstrf

    factor, pivots, rank, _ = dpstrf(covariance, lower=1)
    rows = np.empty((len(covariance), rank))
    rows[pivots - 1] = np.tril(factor[:, :rank])
    return rows


def _split_score(logits: np.ndarray, members: np.ndarray) -> float:
    """exp(mean KL(p || mean p)), which is exp(H(mean p) - mean H(p))."""
    marginal, negative_entropy = np.zeros(logits.shape[1]), 0.0
    for rows in blocks(len(members)):
        log_p = logits[members[rows]].astype(np.float64)
        log_p -= log_p.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        marginal += p.sum(axis=0)
        negative_entropy += float((p * log_p).sum())
    marginal /= len(members)
    occurring = marginal[marginal > 0]
    return float(np.exp(negative_entropy / len(members) - occurring @ np.log(occurring)))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    gram = x @ y.T / x.shape[1] + 1
    return gram * gram * gram


def _squared_distances(
    first: np.ndarray, second: np.ndarray, centre: np.ndarray
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Rows, columns and squared Euclidean distances, block by block.

    Rows are taken relative to `centre` (d,), because squared norms are subtracted: far from zero, near copies would
    lose their digits. What is left of copies is rounding, which depends on the order of a sum: it is set to zero.
    """
    rounding = first.shape[1] * np.finfo(np.float64).eps
    for rows in blocks(len(first)):
        a = first[rows] - centre
        for columns in blocks(len(second)):
            b = second[columns] - centre
            scale = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)
            squared = a @ b.T
            squared *= -2
            squared += scale
            squared[squared <= rounding * scale] = 0
            yield rows, columns, squared


def _squared_radii(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Squared distance (n,) of each row to its third nearest neighbour, itself apart."""
    nearest = np.full((len(features), PRC_NEIGHBOURS + 1), np.inf)
    for rows, _, squared in _squared_distances(features, features, centre):
        nearest[rows] = np.partition(np.hstack([nearest[rows], squared]), PRC_NEIGHBOURS)[:, : PRC_NEIGHBOURS + 1]
    return nearest.max(axis=1)


def _mean_distance(features: np.ndarray) -> float:
    centre = features.mean(axis=0, dtype=np.float64)
    total = sum(float(np.sqrt(squared).sum()) for _, _, squared in _squared_distances(features, features, centre))
    return total / (len(features) * (len(features) - 1))


def _subset(rows: np.ndarray, size: int) -> np.ndarray:
    # Not the first rows: samples may come sorted by class. Raw Philox words are the same in every NumPy version.
    if len(rows) == size:
        return rows
    return rows[np.argsort(np.random.Philox(key=SEED).random_raw(len(rows)), kind="stable")[:size]]


def _require_samples(score: str, found: int, needed: int) -> None:
    if found < needed:
        raise UserError(f"{score}: needs at least {needed} samples, not {found}; draw more samples")
