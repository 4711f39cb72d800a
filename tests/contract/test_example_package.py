"""The guide to adding a method, and its example package: installed, its method is one like those of the repository."""

import json
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import yaml

from harness.checkpoint import load_checkpoint
from harness.config import MethodConfig
from harness.diffusion import CosineClock
from harness.method import Method, Start, Turn
from harness.registry import ENTRY_POINT_GROUP
from tests.conftest import SPEC
from tests.contract.probe import Probe
from tests.profiles import CONTENT, write_profile
from tests.workflow.conftest import ROOT, run

EXAMPLE = ROOT / "tests" / "contract" / "example"
KIT = ROOT / "tests" / "contract" / "test_methods.py"
METHOD = "score-identity"
SECTION = {**CONTENT["methods"][0], "id": METHOD, "steps": [1]}
WORKFLOW = ["snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "1", "--config", "profile=mine.yaml"]
RUN = Path(METHOD, "default", "k1", "seed0")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of an environment that has the package, which pip builds and installs without a network."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(EXAMPLE, folder / "source")  # a build leaves files among its sources
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    result = run("python", "-m", "pip", "install", *offline, "--target", folder / "site", "./source", cwd=folder)
    assert result.returncode == 0, result.stderr
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)])}


@pytest.fixture(scope="module")
def folder(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small profile, to which the method is added, its data and a teacher."""
    folder = tmp_path_factory.mktemp("workspace")
    write_profile(folder / "mine.yaml", {"methods.1": SECTION})
    for verb in (["data"], ["teacher", "--backend", "torch"]):
        result = run("fewstep", *verb, "--profile", "mine.yaml", "--results", ".", cwd=folder, env=environment)
        assert result.returncode == 0, result.stderr
    return folder


def cost(call: str) -> int:
    """What one call of this kind adds to the passes of an update whose teacher is guided."""

    class OneCall(Probe):
        turns = {"only": Turn(("student",), **{"gradient": 0, call: 1})}

    return OneCall(1, 1, CosineClock(), OneCall.Options(), SPEC, {"teacher": 1.0}).passes("only")


def test_the_guide_names_all_of_the_contract() -> None:
    text = (ROOT / "baselines" / "README.md").read_text()
    for start in get_args(Start):
        assert re.search(rf"^\| `{start.__name__}\(", text, re.MULTILINE)
    for call in set(Turn.__dataclass_fields__) - {"trains", "sources"}:
        assert re.search(rf"^\| `{call}`.* {cost(call)} \|$", text, re.MULTILINE)
    for name in vars(Method):
        assert name.startswith("_") or f"`{name}" in text, name
    snippets = dict(re.findall(r"^ *```(yaml|toml)\n(.*?)```", text, re.MULTILINE | re.DOTALL))
    (section,) = yaml.safe_load(snippets["yaml"])["methods"]
    MethodConfig.model_validate(section)
    assert list(tomllib.loads(snippets["toml"])["project"]["entry-points"]) == [ENTRY_POINT_GROUP]


def test_the_module_is_short() -> None:
    (module,) = EXAMPLE.glob("*.py")
    assert len(module.read_text().splitlines()) <= 60


def test_the_registry_holds_the_installed_method(environment: dict[str, str], tmp_path: Path) -> None:
    code = f"from harness.registry import get_method; print(get_method({METHOD!r}))"
    result = run("python", "-c", code, cwd=tmp_path, env=environment)
    assert result.stdout == "<class 'fewstep_score_identity.ScoreIdentity'>\n", result.stderr


def test_the_contract_kit_passes_unchanged(environment: dict[str, str]) -> None:
    options = ["-v", "-k", METHOD, "-p", "no:cacheprovider"]
    result = run("pytest", *options, KIT, cwd=ROOT, env=environment, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.findall(rf"::(\w+)\[.*{METHOD}.*\] PASSED", result.stdout)
    assert set(passed) == set(re.findall(r"^def (test_\w+)", KIT.read_text(), re.MULTILINE))
    assert f" {len(passed)} passed, " in result.stdout


def test_the_workflow_plans_its_runs_on_both_backends(environment: dict[str, str], folder: Path) -> None:
    result = run(*WORKFLOW, "--dry-run", cwd=folder, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    for backend in CONTENT["backends"]:
        for name in ("student.safetensors", "metrics-ancestral-k1.json"):
            assert str(Path("results/runs/mine", backend, RUN, name)) in result.stdout + result.stderr


def test_it_is_distilled_and_sampled_by_hand(environment: dict[str, str], folder: Path) -> None:
    options = ["--backend", "torch", "--method", METHOD, "--student", "k1", "--profile", "mine.yaml", "--results", "."]
    for verb in ("distill", "sample"):
        result = run("fewstep", verb, *options, cwd=folder, env=environment)
        assert result.returncode == 0, result.stderr
    trained = folder / "mine" / "torch" / RUN
    assert json.loads((trained / "train.json").read_text())["updates"] == SECTION["updates"]
    student, _ = load_checkpoint(trained / "student.safetensors")
    teacher, _ = load_checkpoint(
        folder / "mine" / "torch" / "teacher" / "default" / "teacher" / "seed0" / "teacher.safetensors"
    )
    assert {name for name in student if (student[name] != teacher[name]).any()} == set(teacher)
    assert (trained / "samples-ancestral-k1.npz").exists()


def test_step_counts_that_it_refuses_are_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    write_profile(tmp_path / "mine.yaml", {"methods.0": {**SECTION, "steps": [2, 1]}})
    result = run(*WORKFLOW, cwd=tmp_path, env=environment)
    assert result.returncode != 0
    assert result.stderr.endswith(f"error: {METHOD} has one-step students alone: give it steps: [1] in the profile\n")
    assert "Traceback" not in result.stderr
