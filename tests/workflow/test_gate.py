"""This commit against the accepted reference of the gate's profile, and the gate against planted faults."""

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.cli import THREAD_VARIABLES
from harness.workspace import Workspace
from tests.workflow.conftest import ROOT, environment, run

REFERENCE = ROOT / "results" / "reference" / "gate"
WORKSPACE = Workspace("gate")
ROWS = sum(len(WORKSPACE.settings(run)) for run in WORKSPACE.runs() if run.seed == 0)
STUDENT = Path("jax", "moment-matching-alternating", "default", "k8")


@pytest.fixture(scope="module")
def finished(repository: Path) -> Path:
    """The copy of the repository after the target `check`, whatever came of it."""
    shutil.copytree(REFERENCE, repository / "results" / "reference" / "gate")
    command = ["snakemake", "--cores", "1", "check", "--config", "profile=gate"]
    result = run(*command, cwd=repository, timeout=1800)
    (repository / "output").write_text(f"{result.returncode}\n{result.stdout}{result.stderr}")
    return repository


def test_no_row_has_regressed(finished: Path) -> None:
    status, _, output = (finished / "output").read_text().partition("\n")
    assert status == "0", output
    suite = ET.parse(finished / "results/runs/gate/check.xml").getroot()[0]
    assert (suite.attrib["tests"], suite.attrib["failures"]) == (str(ROWS), "0")


def test_the_student_is_clearly_better_than_its_teacher(finished: Path) -> None:
    """Else a student that learnt nothing, or the auxiliary in its place, would pass."""
    result = run("fewstep", "check", "--profile", "gate", "--json", cwd=finished)
    rows = {row["row"]: row["run"]["fid"] for row in json.loads(result.stdout)["rows"]}
    assert rows["jax moment-matching/alternating ancestral-k8"] < 0.75 * rows["jax teacher ancestral-k8"]


@pytest.mark.parametrize(
    ("fault", "redone"),
    [
        ("posterior variance, in sampling", "metrics-*.json"),
        ("no stop-gradient of the bracket", "*"),
        ("student and auxiliary swapped, in the result", "*"),
    ],
)
def test_a_planted_fault_is_caught(finished: Path, tmp_path: Path, fault: str, redone: str) -> None:
    runs = finished / "results" / "runs"
    shutil.copytree(runs / "gate", tmp_path / "gate")
    for path in (tmp_path / "gate" / STUDENT).glob(f"seed*/{redone}"):
        path.unlink()
    one_thread = dict.fromkeys(THREAD_VARIABLES, "1") | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    cache = {"JAX_COMPILATION_CACHE_DIR": str(runs / "gate" / "jax-cache")}
    command = [sys.executable, "-m", "tests.gate.planted", fault, "gate", str(tmp_path)]
    planted = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(ROOT) | os.environ | one_thread | cache,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert planted.returncode == 0, planted.stderr
    result = run("fewstep", "check", "--profile", "gate", "--results", tmp_path, cwd=finished)
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stdout.startswith("regression   jax moment-matching/alternating ancestral-k8: FID ")
    assert f"1 of {ROWS} rows regressed" in result.stdout
