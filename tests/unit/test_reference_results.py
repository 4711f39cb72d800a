"""The committed results: of the digits profile, complete, within their bars, and what the README says; the gate's."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from harness.reporting.gate import configuration, grouped, load_reference
from harness.reporting.records import CAPTION_COLUMNS, COLUMNS
from harness.workspace import Workspace
from tests.gate.planted import CAUGHT, TOO_SMALL

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results/reference/digits/main.csv"
BACKENDS = ["torch", "jax"]
STEPS = (8, 4, 2, 1)
BARS = {
    "moment-matching/alternating": {8: 0.45, 4: 0.45, 2: 0.40, 1: 0.40},
    "moment-matching/instant": {8: 0.60, 4: 0.50, 2: 0.40},
    "progressive": {8: 0.60, 4: 0.40, 2: 0.25, 1: 0.10},
    "multistep-consistency": {8: 0.65, 4: 0.45, 2: 0.30, 1: 0.20},
    "consistency-distillation": {1: 0.20},
    "diff-instruct": {1: 0.15},
    "dmd": {1: 0.15},
    "dmd2": {1: 0.20},
}
"""FID over that of the teacher's ancestral sampling at the same number of steps."""
VERDICTS = {"holds", "does not hold", "undecided", "not tested"}


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return pd.read_csv(REFERENCE)


def fid(results: pd.DataFrame, **where: object) -> float:
    """The mean FID over the seeds of the rows that have these values."""
    rows = results.loc[(results[list(where)] == pd.Series(where)).all(axis=1)]
    assert len(rows) == rows["seed"].nunique(dropna=False) > 0, where
    return float(rows["fid"].mean())


def teacher_fid(results: pd.DataFrame, backend: str, steps: int, sampler: str = "ancestral") -> float:
    """The FID of a teacher without guidance."""
    return fid(results, backend=backend, method="teacher", sampler=sampler, steps=steps, guidance=0.0)


def test_every_row_of_the_profile_is_there_with_one_identity(results: pd.DataFrame) -> None:
    assert list(results.columns) == [name for name in COLUMNS if name not in CAPTION_COLUMNS]
    workspace = Workspace("digits")
    expected = {
        (run.backend, run.method, run.variant, setting.sampler, setting.steps, setting.guidance, run.seed)
        for run in workspace.runs()
        for setting in workspace.settings(run)
    }
    trained = results[results.method != "real-data"]
    keys = ["backend", "method", "variant", "sampler", "steps", "guidance", "seed"]
    assert set(trained[keys].itertuples(index=False, name=None)) == expected
    assert len(trained) == len(expected)
    assert results.identity.nunique() == 1
    assert set(trained.convention) == {"final"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_teacher_is_within_four_times_the_real_data_floor(results: pd.DataFrame, backend: str) -> None:
    assert teacher_fid(results, backend, 64) <= 4 * fid(results, method="real-data")


@pytest.mark.parametrize(("method", "steps"), [(method, steps) for method, bars in BARS.items() for steps in bars])
@pytest.mark.parametrize("backend", BACKENDS)
def test_students_against_their_teacher_at_the_same_steps(
    results: pd.DataFrame, backend: str, method: str, steps: int
) -> None:
    student = fid(results, backend=backend, method=method, variant="default", steps=steps)
    assert student <= BARS[method][steps] * teacher_fid(results, backend, steps)


@pytest.mark.parametrize("steps", [8, 4, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dmd2_against_its_teachers_deterministic_sampler(results: pd.DataFrame, backend: str, steps: int) -> None:
    student = fid(results, backend=backend, method="dmd2", variant="default", steps=steps)
    assert student < teacher_fid(results, backend, steps, "ddim")


def test_every_claim_has_a_verdict_and_those_of_this_profile_are_tested() -> None:
    claims = pd.read_csv(REFERENCE.parent / "claims.csv", dtype=str, keep_default_na=False)
    assert list(claims.columns) == ["id", "claim", "evidence", "statistic", "interval", "verdict"]
    assert list(claims["id"]) == [f"C{number}" for number in range(1, 13)]
    assert set(claims["verdict"]) <= VERDICTS
    assert list(claims.loc[claims["verdict"] == "not tested", "id"]) == ["C9"], "text-to-image is another profile's"
    readme = (ROOT / "README.md").read_text()
    for claim in claims.itertuples():
        assert re.search(rf"\| {claim.id} \|.*\| {claim.verdict} \|", readme), claim.id


def test_the_readme_says_what_was_measured(results: pd.DataFrame) -> None:
    text = re.search("<!-- results -->(.*)<!-- /results -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert text is not None
    table, _, _ = text[1].partition("###")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if line[:1] == "|"]
    header, _, *body = rows
    assert header == ["FID-10k", "Backend", *(f"k = {steps}" for steps in STEPS)]
    backends = {"PyTorch": "torch", "JAX": "jax"}
    students = results[(results["variant"] == "default") & ~results["method"].isin(["teacher", "real-data"])]
    expected = {(method, backend) for method, backend in students[["method", "backend"]].itertuples(index=False)}
    expected |= {(f"teacher, {sampler}", backend) for sampler in ("ancestral", "ddim") for backend in BACKENDS}
    assert {(name, backends[backend]) for name, backend, *_ in body} == expected
    assert len(body) == len(expected)
    for name, backend, *values in body:
        method, _, sampler = name.partition(", ")
        where = {"backend": backends[backend], "method": method, "variant": "default", "guidance": 0.0}
        where |= {"sampler": sampler} if sampler else {}
        for steps, value in zip(STEPS, values, strict=True):
            rows_there = results.loc[(results[[*where, "steps"]] == pd.Series({**where, "steps": steps})).all(axis=1)]
            said = "\N{EN DASH}" if rows_there.empty else f"{fid(results, **where, steps=steps):.3f}"
            assert value.strip("*") == said, (name, backend, steps)
    assert f"{fid(results, method='real-data'):.4f}" in text[1]


def test_an_update_costs_little_more_than_by_hand() -> None:
    bench = json.loads((REFERENCE.parent / "bench.json").read_text())["rows"]
    bars = [row for row in bench if "bar" in row]
    turns = {row["quantity"].split(":")[0] for row in bars}
    assert len(turns) > 20, "every turn of every method on both backends"
    readme = (ROOT / "README.md").read_text()
    for row in bars:
        value = row.get("ratio", row.get("seconds"))
        assert value <= row["bar"], row["quantity"]
        assert re.search(rf"\| {re.escape(row['quantity'])} \| {value:g}( s)? \|", readme), row["quantity"]


def test_the_gates_reference_is_of_its_profile_and_of_ten_seeds() -> None:
    reference = load_reference(ROOT / "results/reference/gate")
    assert reference.configuration == configuration(Workspace("gate"))
    assert reference.history[-1].git_commit
    for rows in grouped(reference.rows).values():
        assert [row.seed for row in rows] == reference.history[-1].seeds == Workspace("gate-reference").profile.seeds


def test_the_gate_was_measured_to_catch_the_planted_faults_and_no_clean_run() -> None:
    page = (ROOT / "results/reference/gate/faults.md").read_text()
    commit = load_reference(ROOT / "results/reference/gate").history[-1].git_commit
    assert f"against the reference of commit {commit}\n" in page, "measure it again"
    assert "## 20 clean seeds other than the reference's, 190 runs: 0 false alarms" in page
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in page.splitlines() if line[:1] == "|"]
    caught = {row[0]: row[-2] for row in rows}
    assert {fault: caught[fault] for fault in CAUGHT} == dict.fromkeys(CAUGHT, "3 of 3")
    assert TOO_SMALL.keys() <= caught.keys()
