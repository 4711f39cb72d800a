"""Scores of generated images against a reference: torch-fidelity's functions with every free choice fixed.

All arrays are float64 features (n, d) unless said otherwise, generated first and reference second.
"""

import numpy as np
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from harness.errors import UserError
from harness.metrics.statistics import Moments

SEED = 2020
IS_SPLITS = 10
KID_SUBSETS = 100
KID_SUBSET_SIZE = 500
PRC_NEIGHBOURS = 3

# The choices above, named: part of every metric identity. Raise the last number when a score's definition changes.
PROTOCOL = f"is{IS_SPLITS}-kid{KID_SUBSETS}x{KID_SUBSET_SIZE}-prc{PRC_NEIGHBOURS}-seed{SEED}-v1"


def fid(generated: Moments, reference: Moments) -> float:
    """Frechet distance of two Gaussians (Heusel et al. 2017): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    Raises UserError where either side has fewer than two samples.
    """
    first, second = ({"mu": m.mean, "sigma": m.covariance} for m in (generated, reference))
    return float(fid_statistics_to_metric(first, second, verbose=False)["frechet_inception_distance"])


def inception_score(logits: np.ndarray) -> tuple[float, float]:
    """Inception score of logits (n, classes) (Salimans et al. 2016): mean and deviation over 10 shuffled splits.

    Raises UserError with fewer than 10 rows.
    """
    _require_samples("inception score", len(logits), IS_SPLITS)
    score = isc_features_to_metric(torch.from_numpy(logits), IS_SPLITS, shuffle=True, rng_seed=SEED)
    return score["inception_score_mean"], score["inception_score_std"]


def kid(generated: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Kernel distance (Binkowski et al. 2018): unbiased MMD^2 with the kernel (x.y / d + 1)^3.

    Mean and deviation over 100 subsets of 500; of the smaller side's size where that is below 500. It may be slightly
    negative. Raises UserError with fewer than 2 rows on a side.
    """
    size = min(KID_SUBSET_SIZE, len(generated), len(reference))
    _require_samples("kernel distance", size, 2)
    score = kid_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(reference),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        rng_seed=SEED,
        verbose=False,
    )
    return score["kernel_inception_distance_mean"], score["kernel_inception_distance_std"]


def precision_recall(generated: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), k = 3, both in [0, 1].

    The larger side is cut to the smaller one's size by a seeded draw, because either value grows with the number of
    balls in the other side's manifold; the cost is quadratic in that size. Raises UserError with fewer than 4 rows.
    """
    size = min(len(generated), len(reference))
    _require_samples("precision and recall", size, PRC_NEIGHBOURS + 1)
    sides = [torch.from_numpy(_subset(side, size)) for side in (generated, reference)]
    score = prc_features_to_metric(*sides, prc_neighborhood=PRC_NEIGHBOURS, save_cpu_ram=True, verbose=False)
    return score["precision"], score["recall"]


def nearest_neighbour_distance(images: np.ndarray, train_images: np.ndarray) -> float:
    """Mean Euclidean distance, in pixels of [-1, 1], of each image to its nearest training image; 0: all are copies.

    Both arrays are uint8 (n, c, h, w). Squared distances of 8-bit levels are integers, hence exact in float64.
    """
    train = train_images.reshape(len(train_images), -1).astype(np.float64)
    train_norms = (train**2).sum(axis=1)
    total = 0.0
    for start in range(0, len(images), 1000):
        rows = images[start : start + 1000].reshape(-1, train.shape[1]).astype(np.float64)
        squared = (train_norms - 2 * (rows @ train.T)).min(axis=1) + (rows**2).sum(axis=1)
        total += float(np.sqrt(squared).sum())
    return total / len(images) / 127.5


def class_distance(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean Euclidean distance between the features of two images of one class: the diversity within classes.

    Over all pairs of different images, averaged first within each class of `labels` (n,), then over classes, so that
    sets of any size and any balance of classes compare. A class of one image has no pair and is left out. Raises
    UserError where no class has two images.
    """
    classes = [torch.from_numpy(features[labels == label]) for label in np.unique(labels)]
    _require_samples("class distance, the largest class", max(map(len, classes), default=0), 2)
    return float(np.mean([_mean_distance(rows) for rows in classes if len(rows) > 1]))


def _mean_distance(rows: torch.Tensor) -> float:
    # Centred, because squared norms are subtracted: far from zero, near copies would lose their digits.
    rows = rows - rows.mean(dim=0)
    total = sum(
        float(torch.cdist(block, rows, compute_mode="use_mm_for_euclid_dist").sum()) for block in rows.split(500)
    )
    return total / (len(rows) * (len(rows) - 1))


def _subset(rows: np.ndarray, size: int) -> np.ndarray:
    # Not the first rows: samples may come sorted by class. Raw Philox words are the same in every NumPy version.
    if len(rows) == size:
        return rows
    return rows[np.argsort(np.random.Philox(key=SEED).random_raw(len(rows)), kind="stable")[:size]]


def _require_samples(score: str, found: int, needed: int) -> None:
    if found < needed:
        raise UserError(f"{score}: needs at least {needed} samples, not {found}; draw more samples")
