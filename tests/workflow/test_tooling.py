"""The repository keeps its own rules: linters, types, pins and the borders between its parts."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("harness", "baselines") for path in (ROOT / folder).rglob("*.py"))
FRAMEWORKS = {"torch", "torchvision", "torch_fidelity", "jax", "jaxlib", "equinox", "optax", "array_api_compat.torch"}
FRAMEWORK_FOLDERS = ("harness/backends/", "harness/networks/", "harness/metrics/", "harness/text_encoders/")
PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)(?: ; .*?)? \\\n(?P<hashes>(?:    --hash=.*\n)+)", re.MULTILINE
)


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def lock():
    return (ROOT / "requirements.lock").read_text()


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "command",
    [
        "ruff check",
        "ruff format --check",
        "mypy",
        "snakefmt --check Snakefile workflows/rules",
        "snakemake --lint",
    ],
)
def test_tool_is_content(command):
    tool, *arguments = command.split()
    program = Path(sys.executable).parent / tool
    run = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_lock_is_pins_with_hashes_and_nothing_else(lock):
    pins = list(PIN.finditer(lock))
    assert len(pins) > 50
    assert "".join(pin.group() for pin in pins) == lock
    for pin in pins:
        for line in pin["hashes"].splitlines():
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?", line), pin["name"]


def test_the_lock_carries_no_address(lock):
    assert not re.findall(r"\w+://|--[a-z-]*index|--find-links|--trusted-host|@ ", lock)


def test_the_lock_pins_what_the_project_asks_for(project, lock):
    pins: dict[str, list[str]] = {}
    for pin in PIN.finditer(lock):
        pins.setdefault(canonicalize_name(pin["name"]), []).append(pin["version"])
    metadata = project["project"]
    extras = [text for extra in metadata["optional-dependencies"].values() for text in extra]
    # the build requirements too: the project itself is installed without build isolation
    for text in (*metadata["dependencies"], *extras, *project["build-system"]["requires"]):
        requirement = Requirement(text)
        versions = pins.get(canonicalize_name(requirement.name), [])
        assert versions, f"{text} is not pinned"
        assert all(requirement.specifier.contains(version) for version in versions), f"{text} is pinned at {versions}"


def test_one_version_everywhere(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["project"]["version"] == version("fewstep") == str(citation["version"])
    assert project["project"]["license"] == citation["license"] == "Apache-2.0"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_sources_stay_short(path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", [path for path in SOURCES if not _name(path).startswith(FRAMEWORK_FOLDERS)], ids=_name)
def test_frameworks_stay_behind_the_backends(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert not {name for name in imported if name in FRAMEWORKS or name.partition(".")[0] in FRAMEWORKS}
