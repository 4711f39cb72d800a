"""Claims about sampling, training and cost are judged by their own rules, and the verb gathers what they need."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from harness.reporting.claims import read_claims
from harness.reporting.claims_evidence import ALTERNATING, INSTANT
from harness.reporting.claims_gradient import gradient_distance
from harness.reporting.claims_process import loss_shape
from harness.verbs import claims as claims_verb
from harness.workspace import Workspace
from tests.profiles import write_profile
from tests.unit.test_reporting_claims import THREE, both, evidence, found, runs, teachers
from tests.unit.test_reporting_tables import floor, save


@pytest.mark.parametrize(("score", "verdict"), [(9.5, "holds"), (8.0, "does not hold"), (9.01, "undecided")])
def test_c6_compares_inception_scores_over_splits(score, verdict):
    guided = [runs("teacher", 1.0, 64, guidance=w, **{"is": score}) for w in (0.5, 2.0)]
    finding = found("C6", evidence(teachers(k64=1.0, k8=1.0), *guided))
    assert finding.verdict == verdict
    half = math.sqrt(2 * 0.1**2 / 9) * stats.t.ppf(0.975, 18)  # the deviation of ten splits, ddof 0
    assert f"{score - 9 - half:+.3f} to {score - 9 + half:+.3f} (torch" in finding.interval


def rise_and_decay(rate=8.0, n=400):
    u = np.arange(n) / n
    return 10 * u, np.exp(-rate * u) * (0.5 + np.minimum(1, u / 0.1))


def test_the_shape_of_a_loss_is_measured():
    x, y = rise_and_decay()
    shape = loss_shape(x, y)
    assert shape.rises
    assert shape.decays
    assert 0.05 < shape.place < 0.15
    assert shape.r_squared > 0.99
    assert shape.end_over_peak == pytest.approx(math.exp(-8 * 0.95) * 1.5 / (math.exp(-0.6) * 1.3), rel=0.5)
    assert not loss_shape(x, y[::-1]).rises
    assert not loss_shape(x, np.ones(400) + y).decays
    assert not loss_shape(x, -y).decays


def test_c7_judges_all_runs():
    x, y = rise_and_decay()
    noisy = y + 0.01 * np.random.default_rng(0).normal(size=len(y)) * y
    good, bad = (x, noisy), (x, np.full(400, 3.0))
    for curves, verdict in (
        ({"a": good, "b": good}, "holds"),
        ({"a": bad, "b": bad}, "does not hold"),
        ({"a": good, "b": bad}, "undecided"),
        ({"a": (x[:5], y[:5])}, "undecided"),
        ({}, "not tested"),
    ):
        assert found("C7", evidence(instant=curves)).verdict == verdict


def test_c8_and_c10_judge_what_was_computed():
    for distances, verdict in (({2: 0.0, 8: 0.3}, "holds"), ({2: 0.3, 8: 0.01}, "does not hold"), ({}, "not tested")):
        assert found("C8", evidence(implied=distances)).verdict == verdict
    for gradients, verdict in (({"torch": 1e-7}, "holds"), ({"torch": 1e-7, "jax": 0.1}, "does not hold")):
        assert found("C10", evidence(gradients=gradients)).verdict == verdict


@pytest.mark.parametrize(
    ("fid", "passes", "memory", "verdict"),
    [
        (1.0, 900, 1.0, "holds"),  # alternating is better and takes more passes
        (1.0, 500, 1.0, "does not hold"),  # better and cheaper
        (1.0, 500, 2.0, "does not hold"),  # memory, the whole process's, decides nothing
        (9.0, 500, 1.0, "holds"),  # instant is better and takes more passes
        (9.0, 900, 1.0, "does not hold"),
    ],
)
def test_c12_asks_whether_one_algorithm_dominates(fid, passes, memory, verdict):
    ours = runs(ALTERNATING, fid, 2, train_passes=passes, peak_memory_mb=100.0 * memory)
    theirs = runs(INSTANT, 3.0, 2, train_passes=700, peak_memory_mb=100.0)
    finding = found("C12", evidence(ours, theirs))
    assert finding.verdict == verdict
    assert f"torch: passes {passes / 700:.2f}, seconds 1.00, peak memory {memory:.2f}" in finding.statistic


def test_c12_is_undecided_where_backends_differ_in_quality():
    ours = runs(ALTERNATING, 1.0, 2, backends=["torch"]) + runs(ALTERNATING, 9.0, 2, backends=["jax"])
    assert found("C12", evidence(ours, runs(INSTANT, 3.0, 2))).verdict == "undecided"


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_algorithm_2_has_the_gradient_of_diff_instruct(backend):
    assert gradient_distance(backend) <= 1e-5


def test_other_weights_give_another_gradient():
    assert gradient_distance("torch", weight="edm") > 0.1


def test_the_verb_judges_records_and_logs(tmp_path, monkeypatch):
    workspace = Workspace(write_profile(tmp_path / "mine.yaml"), tmp_path)
    contents = [floor(), *teachers(k64=1.0), *both({8: 0.5, 4: 1.0}, {8: 0.6, 4: 3.0}, THREE)]
    paths = save(tmp_path, *contents)
    x, y = rise_and_decay()
    for path in paths:
        if "instant" in str(path):
            lines = [
                {
                    "update": 40 * u,
                    "turn": "student",
                    "loss": 1,
                    "learning_rate": 1,
                    "gradient_norm": {},
                    "mean_loss": v,
                }
                for u, v in zip(x, y, strict=True)
            ]
            path.with_name("train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(claims_verb, "records", lambda _: paths)
    monkeypatch.setattr(claims_verb, "gradient_distance", lambda _: 1e-7)
    claims_verb.run(workspace)
    verdicts = {claim.id: claim.verdict for claim in read_claims(tmp_path / "mine/tables/claims.csv")}
    assert {verdicts[name] for name in ("C1", "C2", "C7", "C8", "C10")} == {"holds"}
    assert {verdicts[name] for name in ("C4", "C5", "C6", "C9", "C11")} == {"not tested"}
