"""Killed at a random moment and started again by the same command, a run ends in the bytes of an undisturbed one."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.profiles import MATCHING, write_profile
from tests.workflow.conftest import BIN, environment, run

UPDATES, CHECKPOINT_EVERY = 400, 25
MOMENTS = range(CHECKPOINT_EVERY + 1, UPDATES // 2)
"""Logged updates after which a run is killed: the rest takes 0.1 s and longer, which a late killer must not miss."""
LENGTH = {"batch": 16, "updates": UPDATES, "checkpoint_every": CHECKPOINT_EVERY}
CHANGES = {f"{section}.{key}": value for section in ("teacher", "methods.0") for key, value in LENGTH.items()}
STAGES = ("teacher", "distill")
SEED = random.SystemRandom().randrange(2**32)
"""Printed when a test fails: the moments of the kills follow from it."""


def folder_of(stage: str, backend: str) -> Path:
    name = "teacher/default/teacher" if stage == "teacher" else "moment-matching-alternating/default/k2"
    return Path("mine", backend, name, "seed0")


def weights_of(stage: str, backend: str) -> Path:
    return folder_of(stage, backend) / ("teacher.safetensors" if stage == "teacher" else "student.safetensors")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verb(stage: str, backend: str, profile: str, results: Path) -> list[str]:
    run_name = [] if stage == "teacher" else ["--method", MATCHING, "--student", "k2"]
    return ["fewstep", stage, "--backend", backend, *run_name, "--profile", profile, "--results", str(results)]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_profile(tmp_path_factory.mktemp("profile") / "mine.yaml", {**CHANGES, "log_every": 1})


@pytest.fixture(scope="module")
def undisturbed(profile: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder in which every run went through without a break."""
    results = tmp_path_factory.mktemp("undisturbed")
    commands = [["fewstep", "data", "--profile", profile, "--results", results]]
    commands += [verb(stage, backend, profile, results) for stage in STAGES for backend in ("torch", "jax")]
    for command in commands:
        result = run(*command, cwd=results)
        assert result.returncode == 0, result.stderr
    return results


def kill_when(due: Callable[[], bool], command: list[str], cwd: Path) -> None:
    """Start the command, and kill its whole process group with SIGKILL as soon as `due` holds."""
    process = psutil.Popen(
        [BIN / command[0], *command[1:]],
        cwd=cwd, env=environment(cwd), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not due():
            assert process.poll() is None, f"ended with {process.returncode} before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint came"
            time.sleep(0.002)
        process.suspend()  # it must not see its children die, nor start others
    finally:
        children = process.children(recursive=True) if process.is_running() else []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert process.returncode == -signal.SIGKILL


def logged(folder: Path) -> int:
    """How many updates a run in progress has logged."""
    log = folder / "resume" / "train.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_killed_verb_goes_on(backend: str, profile: str, undisturbed: Path, tmp_path: Path) -> None:
    print(f"SEED = {SEED}")
    moments = random.Random(f"{SEED}{backend}")
    shutil.copytree(undisturbed / "mine" / "data", tmp_path / "mine" / "data")
    for stage in STAGES:
        folder, command = tmp_path / folder_of(stage, backend), verb(stage, backend, profile, tmp_path)
        moment = moments.choice(MOMENTS)
        print(f"{stage}: killed once {moment} updates are logged")
        kill_when(lambda folder=folder, moment=moment: logged(folder) >= moment, command, tmp_path)
        assert (folder / "resume" / "state.safetensors").exists()
        assert not (tmp_path / weights_of(stage, backend)).exists()
        result = run(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f" 0/{UPDATES} " not in result.stderr, "it must go on, not start anew"
        assert digest(tmp_path / weights_of(stage, backend)) == digest(undisturbed / weights_of(stage, backend))
        assert {path.name for path in folder.iterdir()} == {
            path.name for path in (undisturbed / folder_of(stage, backend)).iterdir()
        }


def test_a_twice_killed_workflow_goes_on_with_the_same_command(
    profile: str, undisturbed: Path, repository: Path
) -> None:
    print(f"SEED = {SEED}")
    moments = random.Random(f"{SEED}workflow")
    results = repository / "results" / "runs"
    targets = [weights_of("distill", "torch"), weights_of("teacher", "jax")]
    command = ["snakemake", "--cores", "2", *(str(Path("results", "runs", path)) for path in targets)]
    command += ["--config", f"profile={profile}"]
    running = [results / folder_of("distill", "torch"), results / folder_of("teacher", "jax")]
    moment = moments.choice(MOMENTS)
    print(f"killed once {moment} updates are logged")
    kill_when(lambda: any(logged(folder) >= moment for folder in running), command, repository)
    assert not all((results / path).exists() for path in targets)
    # and once more between the first output of a job and its end: what is there then is not to be trusted
    first_output = results / folder_of("teacher", "jax") / "train.json"
    kill_when(first_output.exists, command, repository)
    result = run(*command, cwd=repository)
    assert result.returncode == 0, result.stderr
    for path in [*targets, weights_of("teacher", "torch")]:
        assert digest(results / path) == digest(undisturbed / path)
