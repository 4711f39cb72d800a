"""Sets of features and of images, their scores by this project, and their scores by definition in float64 NumPy."""

import dataclasses
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import nn

from harness.datasets import ImageSet, load_dataset
from harness.metrics.evaluate import evaluate_images
from harness.metrics.extractors import Extractor, load_extractor
from harness.metrics.reference import build_reference
from harness.metrics.scores import fid, inception_score, kid, precision_recall
from harness.metrics.statistics import Moments

N = 600  # more than a subset of the kernel distance
SEED, SUBSETS, SUBSET_SIZE, SPLITS, NEIGHBOURS = 2020, 100, 500, 10, 3


@dataclass(frozen=True)
class FeatureSets:
    """Features (n, d) of both sides, and logits (n, classes) of the generated one."""

    generated: np.ndarray
    reference: np.ndarray
    logits: np.ndarray


def feature_sets(kind: str) -> FeatureSets:
    """Non-negative, correlated features as networks have them; "singular": also fewer rows than dimensions."""
    rng = np.random.default_rng(0)
    n, d = (N, 48) if kind == "full rank" else (60, 96)
    mixing = rng.standard_normal((d, d)) * np.exp(rng.normal(-2, 1, d))
    generated, reference = (np.maximum(rng.standard_normal((n, d)) @ mixing + shift, 0) for shift in (0, 0.1))
    if kind == "singular":
        generated[:, :5] = reference[:, 3:9] = 0  # features that never fire, not the same ones on both sides
    return FeatureSets(generated, reference, 2 * rng.standard_normal((n, 10)))


def scores_of(sets: FeatureSets) -> dict[str, float]:
    """This project's scores of features."""
    moments = [Moments(rows.shape[1]).update(rows) for rows in (sets.generated, sets.reference)]
    precision, recall = precision_recall(sets.generated, sets.reference)
    scores = {"fid": fid(moments[0], moments[1]), "kid": kid(sets.generated, sets.reference)[0]}
    return scores | {"is": inception_score(sets.logits)[0], "precision": precision, "recall": recall}


def oracle_scores(sets: FeatureSets) -> dict[str, float]:
    """The same by their definitions, in float64, by other formulas where there are any."""
    x, y = (rows.astype(np.float64) for rows in (sets.generated, sets.reference))
    precision, recall = _inside(x, y), _inside(y, x)
    scores = {"fid": _frechet(x, y), "kid": _mmd(x, y), "is": _inception_score(sets.logits.astype(np.float64))}
    return scores | {"precision": precision, "recall": recall}


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    # With C = A^T A, tr (C1 C2)^(1/2) is the sum of the singular values of A1 A2^T: no covariance is decomposed.
    a, b = ((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (x, y))
    nuclear_norm = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * nuclear_norm)


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    draw, size = np.random.RandomState(SEED), min(SUBSET_SIZE, len(x), len(y))
    off_diagonal, values = ~np.eye(size, dtype=bool), []
    for _ in range(SUBSETS):
        a, b = (rows[draw.choice(len(rows), size, replace=False)] for rows in (x, y))
        xx, yy, xy = (
            (np.einsum("id,jd->ij", p, q, optimize=True) / x.shape[1] + 1) ** 3 for p, q in ((a, a), (b, b), (a, b))
        )
        values.append(xx[off_diagonal].mean() + yy[off_diagonal].mean() - 2 * xy.mean())
    return float(np.mean(values))


def _inception_score(logits: np.ndarray) -> float:
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p = p[np.random.RandomState(SEED).permutation(len(p))]
    splits = [p[i * len(p) // SPLITS : (i + 1) * len(p) // SPLITS] for i in range(SPLITS)]
    return float(np.mean([np.exp((s * np.log(s / s.mean(axis=0))).sum(axis=1).mean()) for s in splits]))


def _inside(points: np.ndarray, centres: np.ndarray) -> float:
    """The fraction of points within the ball of a centre that reaches to its third neighbour."""
    radii = np.sort(cdist(centres, centres), axis=1)[:, NEIGHBOURS]
    return float((cdist(points, centres) <= radii).any(axis=1).mean())


@dataclass(frozen=True)
class ImageSets:
    """An extractor, N generated images (n, c, h, w) uint8 and as many real ones."""

    extractor: Extractor
    generated: np.ndarray
    reference: np.ndarray

    def scores(self, batch: int = 500) -> dict[str, float]:
        """This project's scores, end to end."""
        extractor = dataclasses.replace(self.extractor, batch=batch)
        labels = np.zeros(len(self.generated), np.int64)
        reference = build_reference(ImageSet("real", "train", self.reference, labels, 1), extractor)
        return evaluate_images(self.generated, labels, extractor, reference, reference, self.reference)


@cache
def image_sets(kind: str) -> ImageSets:
    """Noisy digits beside digits by the digits' classifier, or two textures by a random network."""
    rng = np.random.default_rng(0)
    if kind == "digits":
        pixels = load_dataset("digits", "train").pixels[: 2 * N]
        noisy = np.clip(pixels[:N] + rng.normal(0, 20, pixels[:N].shape), 0, 255).astype(np.uint8)
        return ImageSets(load_extractor("digits-cnn"), noisy, pixels[N:])
    smooth = [rng.integers(0, high, (N, 3, 4, 4)).repeat(4, axis=2).repeat(4, axis=3) for high in (200, 240)]
    generated, reference = (np.uint8(low + rng.integers(0, 16, low.shape)) for low in smooth)
    return ImageSets(random_extractor(), generated, reference)


def random_extractor() -> Extractor:
    """A small convolutional network of random weights for RGB images of 16x16 pixels."""
    generator = torch.Generator().manual_seed(0)
    convolution, head = nn.Conv2d(3, 32, 5, stride=2), nn.Linear(32, 7)
    for parameter in (*convolution.parameters(), *head.parameters()):
        nn.init.normal_(parameter, 0, 0.3, generator=generator)

    @torch.inference_mode()
    def forward(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = convolution(torch.from_numpy(images).float() / 127.5 - 1).relu().mean(dim=(2, 3))
        return features.numpy(), head(features).numpy()

    return Extractor("random", "0" * 64, "none", 32, (3, 16, 16), forward)
