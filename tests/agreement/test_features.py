"""The same features: each score beside its definition in NumPy, torch-fidelity's functions and clean-fid's."""

import numpy as np
import pytest
import torch
from cleanfid import fid as clean_fid
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from harness.metrics import scores
from harness.metrics.statistics import Moments
from tests.agreement.cases import (
    SEED,
    SPLITS,
    SUBSET_SIZE,
    SUBSETS,
    FeatureSets,
    feature_sets,
    oracle_scores,
    scores_of,
)
from tests.agreement.tolerances import assert_agrees, read_tolerances


@pytest.fixture(params=["full rank", "singular"])
def sets(request) -> FeatureSets:
    return feature_sets(request.param)


def test_scores_equal_their_definitions_in_numpy(sets):
    assert_agrees(scores_of(sets), oracle_scores(sets), "NumPy, same features")


def test_scores_of_float32_features_equal_their_definitions_in_float64(sets):
    narrow = FeatureSets(*(rows.astype(np.float32) for rows in (sets.generated, sets.reference, sets.logits)))
    assert_agrees(scores_of(narrow), oracle_scores(narrow), "NumPy, same features")


def test_scores_equal_torch_fidelitys(sets):
    generated, reference, logits = (torch.from_numpy(rows) for rows in (sets.generated, sets.reference, sets.logits))
    statistics = [fid_features_to_statistics(features) for features in (generated, reference)]
    found = fid_statistics_to_metric(*statistics, False) | isc_features_to_metric(logits, SPLITS, True, SEED)
    size = min(SUBSET_SIZE, len(generated))
    options = {"kid_subsets": SUBSETS, "kid_subset_size": size, "rng_seed": SEED, "verbose": False}
    found |= kid_features_to_metric(generated, reference, **options)
    found |= prc_features_to_metric(generated, reference, save_cpu_ram=True, verbose=False)
    assert_agrees(scores_of(sets), named(found), "torch-fidelity, same features")


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning", "ignore:Matrix is singular")
def test_scores_equal_clean_fids(sets, monkeypatch):
    found = {"fid": clean_fid.fid_from_feats(sets.generated, sets.reference)}
    draw = np.random.RandomState(SEED)
    pairs = [
        [
            draw.choice(len(rows), min(SUBSET_SIZE, len(rows)), replace=False)
            for rows in (sets.generated, sets.reference)
        ]
        for _ in range(SUBSETS)
    ]
    draws = iter([rows for pair in pairs for rows in reversed(pair)])  # clean-fid draws from the reference first
    monkeypatch.setattr(np.random, "choice", lambda *_, **__: next(draws))
    found["kid"] = clean_fid.kernel_distance(sets.generated, sets.reference, SUBSETS, SUBSET_SIZE)
    assert_agrees(scores_of(sets), found, "clean-fid, same features")


def named(found: dict[str, float]) -> dict[str, float]:
    """torch-fidelity's values under our names."""
    return {
        "fid": found["frechet_inception_distance"],
        "kid": found["kernel_inception_distance_mean"],
        "is": found["inception_score_mean"],
        "precision": found["precision"],
        "recall": found["recall"],
    }


def test_the_frechet_distance_of_singular_covariances_of_many_dimensions():
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((40, 700)).astype(np.float32) for _ in range(2))
    sides = [Moments(700).update(rows) for rows in (x, y)]
    centred = [rows.astype(np.float64) - side.mean for rows, side in zip((x, y), sides, strict=True)]
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / 39
    shift = sides[0].mean - sides[1].mean
    expected = shift @ shift + sum((rows**2).sum() / 39 for rows in centred) - 2 * root
    assert scores.fid(*sides) == pytest.approx(expected, rel=1e-10)
    assert scores.fid(sides[0], sides[0]) == pytest.approx(0, abs=1e-9)


def test_features_that_never_vary_have_the_distance_of_their_means():
    constant = Moments(3).update(np.tile([1.0, 2.0, 3.0], (5, 1)))
    other = Moments(3).update(np.tile([1.0, 2.0, 5.0], (5, 1)))
    assert scores.fid(constant, other) == pytest.approx(4)
    varying = np.random.default_rng(0).standard_normal((50, 3))
    expected = ((varying.mean(axis=0) - [1, 2, 3]) ** 2).sum() + varying.var(axis=0, ddof=1).sum()
    assert scores.fid(Moments(3).update(varying), constant) == pytest.approx(expected)


def test_a_covariance_accumulator_starts_at_zero():
    rows = 1e-3 * np.random.default_rng(0).standard_normal((3, 4))  # a start at one would drown these
    moments = Moments(4)
    assert not moments.scatter.any()
    for row in rows:
        moments.update(row[None])
    np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False), rtol=1e-10)


def test_a_table_without_its_markers_or_of_other_scores_is_refused():
    with pytest.raises(AssertionError, match="no table of tolerances"):
        read_tolerances("| compared with | FID |")
    with pytest.raises(AssertionError):
        read_tolerances("<!-- agreement -->\n| compared with | FID |\n|---|---|\n<!-- /agreement -->")
