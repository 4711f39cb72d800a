"""The committed results of the digits profile: complete, within their bars, and what the README says."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from harness.reporting.tables import COLUMNS
from harness.workspace import Workspace

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results/reference/digits/main.csv"
BACKENDS = ["torch", "jax"]
STUDENT = "moment-matching/alternating"
BARS = {8: 0.45, 4: 0.45, 2: 0.40, 1: 0.40}


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return pd.read_csv(REFERENCE)


def fid(results: pd.DataFrame, **where: object) -> float:
    """The FID of the one row that has these values."""
    rows = results.loc[(results[list(where)] == pd.Series(where)).all(axis=1)]
    assert len(rows) == 1, where
    return float(rows["fid"].iloc[0])


def test_every_row_of_the_profile_is_there_with_one_identity(results: pd.DataFrame) -> None:
    assert list(results.columns) == COLUMNS
    workspace = Workspace("digits")
    expected = {
        (run.backend, run.method, run.variant, setting.sampler, setting.steps, run.seed)
        for run in workspace.runs()
        for setting in workspace.settings(run)
    }
    trained = results[results.method != "real-data"]
    keys = ["backend", "method", "variant", "sampler", "steps", "seed"]
    assert set(trained[keys].itertuples(index=False, name=None)) == expected
    assert len(trained) == len(expected)
    assert results.identity.nunique() == 1
    assert set(trained.convention) == {"final"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_teacher_is_within_four_times_the_real_data_floor(results: pd.DataFrame, backend: str) -> None:
    teacher = fid(results, backend=backend, method="teacher", sampler="ancestral", steps=64)
    assert teacher <= 4 * fid(results, method="real-data")


@pytest.mark.parametrize("steps", BARS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_students_against_their_teacher_at_the_same_steps(results: pd.DataFrame, backend: str, steps: int) -> None:
    teacher = fid(results, backend=backend, method="teacher", sampler="ancestral", steps=steps)
    student = fid(results, backend=backend, method=STUDENT, variant="default", steps=steps)
    assert student <= BARS[steps] * teacher


def test_the_readme_says_what_was_measured(results: pd.DataFrame) -> None:
    text = re.search("<!-- results -->(.*)<!-- /results -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert text is not None
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text[1].splitlines() if line[:1] == "|"]
    header, _, *body = rows
    assert header == ["Sampler", "Steps", "FID-10k, PyTorch", "FID-10k, JAX"]
    names = {
        "Teacher, ancestral": {"method": "teacher", "sampler": "ancestral"},
        "Teacher, DDIM": {"method": "teacher", "sampler": "ddim"},
        "Moment matching, alternating": {"method": STUDENT},
    }
    for name, steps, *values in body:
        for backend, value in zip(BACKENDS, values, strict=True):
            measured = fid(results, backend=backend, steps=int(steps), **names[name])
            assert value.strip("*") == f"{measured:.3f}", (name, steps, backend)
    assert len(body) == len(results[results.backend == "torch"])
    assert f"{fid(results, method='real-data'):.4f}" in text[1]


def test_an_update_costs_little_more_than_by_hand() -> None:
    bench = json.loads((REFERENCE.parent / "bench.json").read_text())["rows"]
    bars = [row for row in bench if "bar" in row]
    assert len(bars) == 10, "three turns: two overheads and one ratio each, and the start of the command"
    for row in bars:
        assert row.get("ratio", row.get("seconds")) <= row["bar"], row["quantity"]
    readme = (ROOT / "README.md").read_text()
    for row in bars:
        value = row.get("ratio", row.get("seconds"))
        assert re.search(rf"\| {re.escape(row['quantity'])} \| {value:g}( s)? \|", readme), row["quantity"]
