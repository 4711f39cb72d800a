"""The commands of this environment, and copies of the repository to run them in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def run(*command: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `fewstep` or `snakemake` of this environment in a folder, with the sources of the repository around it."""
    program, *arguments = map(str, command)
    options = {"env": environment(cwd), "capture_output": True, "text": True, "timeout": 300, **options}
    return subprocess.run([BIN / program, *arguments], cwd=cwd, **options)


def environment(repository: Path) -> dict[str, str]:
    """The environment in which a copy of the repository imports itself, not the installed one."""
    sources = {"PYTHONPATH": str(repository)} if (repository / "harness").is_dir() else {}
    return os.environ | sources


def copy_repository(target: Path) -> Path:
    """Copy what git would commit, tests and reference results apart."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "results/reference/")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without results, shared by the tests of one file."""
    return copy_repository(tmp_path_factory.mktemp("repository"))
