"""Claims are judged by their own rules: made records with a known answer, both ways, and too little to decide."""

import csv
import itertools

import numpy as np
import pytest

from harness.errors import UserError
from harness.reporting.claims import RULES, judge, read_claims, write_claims
from harness.reporting.claims_evidence import ALTERNATING, INSTANT, Evidence
from harness.reporting.records import Record, frame
from tests.unit.test_reporting_tables import floor, record

NO_EVIDENCE = {"instant": {}, "implied": {}, "gradients": {}}
THREE = (0.97, 1.0, 1.03)


def runs(method, fid, steps=8, spread=(1.0,), backends=("torch", "jax"), **changes):
    """A record for each seed on the last backend, and for the first seed on the others."""
    return [
        record(method, backend, steps, fid * factor, seed=seed, **changes)
        for backend in backends
        for seed, factor in enumerate(spread if backend == backends[-1] else spread[:1])
    ]


def evidence(*groups, **more):
    contents = [floor(), *itertools.chain(*groups)]
    return Evidence(frame([Record.model_validate(content) for content in contents]), **{**NO_EVIDENCE, **more})


def found(claim, given):
    return RULES[claim][1](given)


def teachers(**fids):
    return [content for name, fid in fids.items() for content in runs("teacher", fid, int(name[1:]))]


def both(alternating, instant, spread=(1.0,)):
    """Runs of both algorithms, FIDs by step count."""
    pairs = [(ALTERNATING, alternating), (INSTANT, instant)]
    return [
        content
        for method, fids in pairs
        for k, fid in fids.items()
        for content in runs(method, fid, k, spread if k == 8 else (1.0,))
    ]


@pytest.mark.parametrize(
    ("fid", "spread", "verdict"),
    [
        (0.5, THREE, "holds"),
        (2.0, THREE, "does not hold"),
        (1.0, THREE, "undecided"),
        (0.5, (0.5, 1.0, 2.0), "undecided"),
        (0.01, (1.0,), "undecided"),
        (0.01, (1.0, 1.0), "undecided"),
    ],
)
def test_c1_compares_the_student_with_its_many_step_teacher(fid, spread, verdict):
    guided = runs("teacher", 1e-4, 64, guidance=1.0)
    finding = found("C1", evidence(teachers(k8=9.0, k64=1.0), guided, runs(ALTERNATING, fid, spread=spread)))
    assert finding.verdict == verdict
    assert f"jax {fid * np.exp(np.mean(np.log(spread))):.2f}" in finding.statistic
    assert "given one teacher" in finding.evidence


def test_c2_needs_every_pair_on_every_backend():
    falling = {1: 1.0, 2: 0.5, 4: 0.2, 8: 0.1}
    assert found("C2", evidence(both(falling, falling))).verdict == "holds"
    finding = found("C2", evidence(both(falling, falling | {2: 1.5})))
    assert finding.verdict == "does not hold"
    assert "Exceptions: instant, 2 over 1 steps." in finding.evidence
    one_backend = runs(INSTANT, 1.5, 2, backends=["torch"]) + runs(INSTANT, 0.5, 2, backends=["jax"])
    rest = both(falling, {k: fid for k, fid in falling.items() if k != 2})
    assert found("C2", evidence(rest, one_backend)).verdict == "undecided"


@pytest.mark.parametrize(
    ("instant", "spread", "verdict"),
    [
        ({8: 1.02, 4: 3.0, 1: 9.0}, THREE, "holds"),
        ({8: 2.0, 4: 3.0, 1: 9.0}, THREE, "does not hold"),  # not close at 8
        ({8: 1.02, 4: 1.5, 1: 9.0}, THREE, "does not hold"),  # better at 4
        ({8: 1.02, 4: 3.0, 1: 9.0}, (1.0,), "undecided"),
        ({8: 1.02}, THREE, "not tested"),
    ],
)
def test_c3_is_close_at_8_and_better_below(instant, spread, verdict):
    assert found("C3", evidence(both({8: 1.0, 4: 2.0, 1: 5.0}, instant, spread))).verdict == verdict


@pytest.mark.parametrize(
    ("progressive", "dmd", "spread", "verdict"),
    [
        (2.0, 1.0, THREE, "holds"),
        (0.5, 1.0, THREE, "does not hold"),
        (2.0, 9.0, THREE, "does not hold"),
        (2.0, 1.0, (1.0,), "undecided"),
    ],
)
def test_c4_wins_at_8_and_loses_at_1(progressive, dmd, spread, verdict):
    ours = both({8: 1.0, 1: 5.0}, {}, spread)
    rivals = [*runs("progressive", progressive, 8, spread), *runs("consistency-distillation", 3.0, 8, spread)]
    others = [*runs("dmd", dmd, 1), *runs("progressive", 8.0, 1), *runs(INSTANT, 1.0, 1)]
    finding = found("C4", evidence(ours, rivals, others))
    assert finding.verdict == verdict
    assert ("better by that: DMD)" in finding.evidence) == (dmd < 5)


def diverse(recall, distance, spread=THREE, **changes):
    contents = runs(ALTERNATING, 1.0, spread=spread, backends=["jax"], **changes)
    for content, factor in zip(contents, spread, strict=True):
        content["row"]["recall"] = recall * factor
        content["extra"]["class_distance"] = distance and distance * factor
    return contents


@pytest.mark.parametrize(
    ("recall", "distance", "spread", "verdict"),
    [
        (0.5, 2.0, THREE, "holds"),
        (0.5, None, THREE, "holds"),
        (0.79, 2.0, THREE, "undecided"),
        (0.79, 2.0, (0.999, 1.0, 1.001), "does not hold"),  # more diverse, but not far more
        (0.5, 6.0, THREE, "does not hold"),
        (0.5, 2.0, (1.0,), "undecided"),
    ],
)
def test_c5_compares_diversity_with_the_unconditional_variant(recall, distance, spread, verdict):
    given = evidence(diverse(0.8, 4.0, spread), diverse(recall, distance, spread, variant="unconditional"))
    assert found("C5", given).verdict == verdict


@pytest.mark.parametrize(
    ("fid", "spread", "verdict"), [(0.4, THREE, "holds"), (0.7, THREE, "does not hold"), (0.4, (1.0,), "undecided")]
)
def test_c11_compares_with_the_better_sampler_of_the_teacher(fid, spread, verdict):
    samplers = runs("teacher", 1.0) + runs("teacher", 0.5, sampler="ddim")
    student = runs(ALTERNATING, fid, spread=spread, variant="ddim", sampler="ddim")
    assert found("C11", evidence(samplers, student)).verdict == verdict


def test_without_records_every_claim_is_not_tested(tmp_path):
    claims = judge(evidence())
    assert [claim.id for claim in claims] == [f"C{i}" for i in range(1, 13)]
    assert {claim.verdict for claim in claims} == {"not tested"}
    write_claims(claims, tmp_path)
    assert read_claims(tmp_path / "claims.csv") == claims


def test_claims_files_have_the_columns(tmp_path):
    claims = judge(evidence(teachers(k64=1.0), runs(ALTERNATING, 0.5, spread=THREE)))
    write_claims(claims, tmp_path)
    with open(tmp_path / "claims.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "claim", "evidence", "statistic", "interval", "verdict"]
    assert (rows[0]["id"], rows[0]["verdict"], rows[8]["verdict"]) == ("C1", "holds", "not tested")
    lines = (tmp_path / "claims.md").read_text().splitlines()
    assert {line.count(" | ") for line in lines[:14]} == {5}
    assert "**holds**" in lines[2]


def test_records_that_may_not_be_compared_are_refused():
    for key, value in (("identity", "bbbb"), ("convention", "best of 5")):
        with pytest.raises(UserError, match=f"one {key}"):
            judge(evidence(runs("teacher", 1.0), runs(ALTERNATING, 1.0, **{key: value})))


def test_missing_and_garbled_claims_are_user_errors(tmp_path):
    path = tmp_path / "claims.csv"
    with pytest.raises(UserError, match=r"claims\.csv: not there"):
        read_claims(path)
    for text in ("", "id,claim\nC1,x\n", '"\n'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"claims\.csv: garbled"):
            read_claims(path)
