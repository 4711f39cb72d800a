"""Each mistake of a user's is one line on stderr and a non-zero exit status, and destroys nothing."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.checkpoint import load_checkpoint
from tests.profiles import CONTENT, MATCHING, write_profile
from tests.workflow.conftest import BIN, ROOT, environment, run

PERCEPTUAL = {
    "methods.0": {**CONTENT["methods"][0], "id": "dmd", "steps": [1], "options": {"metric": "lpips"}},
    "pairs": {"count": 8, "steps": 2},
}
"""A method whose metric needs published weights, which are not there."""
TEACHER_FOLDER = Path("mine", "torch", "teacher", "default", "teacher", "seed0")


def fails(message: str, *command: object, cwd: Path, **options: Any) -> None:
    """The command fails with one line that begins with `error: ` and has the message in it."""
    result = run(*command, cwd=cwd, **options)
    assert_one_line(result, message)


def assert_one_line(result: subprocess.CompletedProcess[str], message: str) -> None:
    assert result.returncode not in (0, None), result.stdout
    # progress bars and Snakemake's own notices may come before
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert message in errors[0]
    assert result.stderr.endswith(errors[0] + "\n")
    assert "Traceback" not in result.stderr + result.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mine.yaml, its data and a trained teacher."""
    folder = tmp_path_factory.mktemp("trained")
    profile = write_profile(folder / "mine.yaml")
    for verb in (["data"], ["teacher", "--backend", "torch"]):
        result = run("fewstep", *verb, "--profile", profile, "--results", folder, cwd=folder)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to do harm to."""
    return Path(shutil.copytree(trained, tmp_path / "folder"))


def test_unknown_profile(tmp_path: Path) -> None:
    fails("unknown profile 'smok'; did you mean 'smoke'?", "fewstep", "data", "--profile", "smok", cwd=tmp_path)


def test_profile_file_that_is_not_there(tmp_path: Path) -> None:
    message = "none.yaml: the profile cannot be read (No such file or directory)"
    fails(message, "fewstep", "data", "--profile", "none.yaml", cwd=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher.updatse": 3}, "unknown key teacher.updatse; did you mean 'updates'?"),
        ({"colour": "red"}, "unknown key colour; known: seeds, backends, data"),
        ({"methods.0.steps": [2, 0]}, "methods.0.steps.1 is 0, but should be greater than or equal to 1"),
        ({"teacher.samplers.ddim": [0]}, "teacher.samplers.ddim.0 is 0, but should be greater than or equal to 1"),
        ({"teacher.updates": "many"}, "teacher.updates is 'many', but should be a whole number"),
    ],
    ids=["mistyped", "unknown", "student", "sampler", "text"],
)
def test_wrong_profile(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    profile = write_profile(tmp_path / "mine.yaml", changes)
    fails(f"{profile}: {message}", "fewstep", "data", "--profile", profile, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


def test_number_that_yaml_reads_as_text(tmp_path: Path) -> None:
    profile = Path(write_profile(tmp_path / "mine.yaml", {"teacher.optimiser.learning_rate": 0.125}))
    profile.write_text(profile.read_text().replace("0.125", "1e-4"))
    message = "teacher.optimiser.learning_rate is the text '1e-4'; write 1.0e-4"
    fails(message, "fewstep", "data", "--profile", profile, cwd=tmp_path)


def test_profile_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seeds: [0\nteacher: {")
    fails("mine.yaml:2: not valid YAML", "fewstep", "data", "--profile", "mine.yaml", cwd=tmp_path)


@pytest.mark.parametrize(
    ("method", "student", "message"),
    [
        (
            "moment-matching",
            "k2",
            "unknown method 'moment-matching'; did you mean 'moment-matching/instant'? known",
        ),
        (MATCHING, "k3", "has no student 'k3'; it has: k2"),
        (MATCHING, "two", "has no student 'two'; it has: k2"),
        ("teacher", "k2", "the teacher has no student 'k2'"),
    ],
)
def test_unknown_method_or_student(folder: Path, method: str, student: str, message: str) -> None:
    options = ["--backend", "torch", "--profile", "mine.yaml", "--results", "."]
    fails(message, "fewstep", "distill", "--method", method, "--student", student, *options, cwd=folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods.0.options": {"weight": "emd"}}, "weight: unknown weight 'emd'; choose one of flat, snr,"),
        ({"methods.0.options": {"transitoin": "ddim"}}, "unknown key transitoin; did you mean 'transition'?"),
        ({"teacher.weight": "emd"}, "teacher: weight: unknown weight 'emd'; choose one of flat, snr,"),
    ],
)
def test_wrong_options(folder: Path, changes: dict[str, Any], message: str) -> None:
    write_profile(folder / "mine.yaml", changes)
    verb = ["distill", "--method", MATCHING, "--student", "k2"] if "methods.0.options" in changes else ["teacher"]
    fails(message, "fewstep", *verb, "--backend", "torch", "--profile", "mine.yaml", "--results", ".", cwd=folder)


def test_published_weights_that_are_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_LPIPS", "nowhere")
    profile = write_profile(folder / "mine.yaml", PERCEPTUAL)
    distill = ["distill", "--method", "dmd", "--student", "k1", "--backend", "torch", "--profile", profile]
    message = (
        "nowhere/vgg16-397923af.pth: no such file, and the metric lpips needs it; set FEWSTEP_LPIPS to the folder that"
    )
    fails(message, "fewstep", *distill, "--results", ".", cwd=folder)
    assert not (folder / "mine" / "torch" / "dmd").exists()


def test_truncated_altered_and_foreign_checkpoints(folder: Path) -> None:
    checkpoint = folder / TEACHER_FOLDER / "teacher.safetensors"
    content = checkpoint.read_bytes()
    for damaged, message in [
        (content[: len(content) // 2], "the checkpoint is damaged"),
        (content[:-3] + bytes([content[-3] ^ 1]) + content[-2:], "the checkpoint was altered"),
        (b"another format", "the checkpoint is damaged or not a checkpoint"),
    ]:
        checkpoint.write_bytes(damaged)
        where = ["--backend", "torch", "--profile", "mine.yaml", "--results", "."]
        fails(f"{checkpoint.relative_to(folder)}: {message}", "fewstep", "sample", *where, cwd=folder)
        assert checkpoint.read_bytes() == damaged
    assert not list(checkpoint.parent.glob("samples-*"))


@pytest.mark.parametrize("verb", ["sample", "teacher"])
def test_checkpoint_of_another_configuration(folder: Path, verb: str) -> None:
    write_profile(folder / "mine.yaml", {"teacher.updates": 7})
    before = (folder / TEACHER_FOLDER / "teacher.safetensors").read_bytes()
    where = ["--backend", "torch", "--profile", "mine.yaml", "--results", "."]
    fails("teacher.updates is 6, expected 7", "fewstep", verb, *where, cwd=folder)
    assert (folder / TEACHER_FOLDER / "teacher.safetensors").read_bytes() == before


def test_missing_output_folder(tmp_path: Path) -> None:
    command = ["fewstep", "data", "--profile", "smoke", "--results", "missing"]
    fails("missing: the output folder does not exist; create it", *command, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (["teacher", "--backend", "jax"], "train.npz: no such file; write it first, with: fewstep data"),
        (["extractor"], "train.npz: no such file; write it first, with: fewstep data"),
        (["sample", "--backend", "torch"], "teacher.safetensors: no such checkpoint; train it first"),
        (["evaluate", "--backend", "torch"], "train.json: not there; train and sample this run first"),
        (["table"], "metrics-real-data.json: not there; write it with fewstep reference, or run snakemake"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_missing_input_names_the_verb_that_makes_it(tmp_path: Path, verb: list[str], message: str) -> None:
    fails(message, "fewstep", *verb, "--profile", "smoke", "--results", ".", cwd=tmp_path)


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (
            ["check"],
            "results/reference/mine/reference.json: the reference cannot be read (No such file or directory); make",
        ),
        (
            ["check", "--against", "none"],
            "none/reference.json: the reference cannot be read (No such file or directory)",
        ),
        (
            ["check", "--against", "mine.yaml"],
            "mine.yaml/reference.json: the reference cannot be read (Not a directory)",
        ),
        (["check", "--against", "damaged"], "damaged/reference.json: damaged (Expecting value"),
        (["check", "--against", "other"], "other/reference.json: the key history is missing"),
        (
            ["check", "--junit", "none/check.xml"],
            "none: the output folder does not exist; create it, or choose another",
        ),
        (["accept", "--reason", " "], "--reason is empty; say why these numbers are to be the reference"),
        (["accept", "--reason", "first"], "profile 'mine': seeds holds 1, fewer than 5; add some"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_check_and_accept_with_nothing_to_work_on(tmp_path: Path, verb: list[str], message: str) -> None:
    write_profile(tmp_path / "mine.yaml")
    for name, content in (("damaged", "rows: []"), ("other", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "reference.json").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    fails(message, "fewstep", *verb, "--profile", "mine.yaml", "--results", ".", cwd=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_loss_that_is_not_finite(folder: Path) -> None:
    changes = {"teacher.optimiser.learning_rate": 1e30, "teacher.updates": 40, "teacher.checkpoint_every": 1}
    write_profile(folder / "mine.yaml", changes)
    shutil.rmtree(folder / TEACHER_FOLDER)
    where = ["--backend", "torch", "--profile", "mine.yaml", "--results", "."]
    fails("update 1, denoise turn: the loss is inf; lower the learning rate", "fewstep", "teacher", *where, cwd=folder)
    assert not (folder / TEACHER_FOLDER / "teacher.safetensors").exists()
    state, _ = load_checkpoint(folder / TEACHER_FOLDER / "resume" / "state.safetensors")
    assert all(np.isfinite(tensor).all() for tensor in state.values())


def test_no_space_left(tmp_path: Path) -> None:
    """A write is refused part of the way, as on a full disk, wherever the limit falls."""
    profile = write_profile(tmp_path / "mine.yaml")
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    limited = f"import os, resource, sys; {limit}; os.execv(sys.argv[1], sys.argv[1:])"
    data = [BIN / "fewstep", "data", "--profile", profile, "--results", "."]
    result = subprocess.run(
        [sys.executable, "-c", limited, *data],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert_one_line(result, "data/train.npz: cannot be written")
    assert not list((tmp_path / "mine" / "data").iterdir())


def test_no_space_left_while_training(folder: Path) -> None:
    """The log fills the disk: unlike all other files it grows line by line."""
    write_profile(folder / "mine.yaml", {"teacher.updates": 100000, "teacher.checkpoint_every": 100000, "log_every": 1})
    shutil.rmtree(folder / TEACHER_FOLDER)
    (folder / "disk").mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    mounting = ["mount", "-t", "tmpfs", "none", folder / "disk"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, *mounting], capture_output=True).returncode:
        pytest.skip("only Linux with user namespaces can mount a small disk here")
    pages = sum(1 + path.stat().st_size // 4096 for path in (folder / "mine").rglob("*")) + 12
    mount = f'mount -t tmpfs -o size={4096 * pages} disk disk && cp -r mine disk && exec "$@"'
    train = [BIN / "fewstep", "teacher", "--backend", "torch", "--profile", "mine.yaml", "--results", "disk"]
    result = subprocess.run(
        [*unshare, "sh", "-ec", mount, "sh", *train],
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert_one_line(result, "no space left on the device; free some, or choose another --results")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("profile=smok", "unknown profile 'smok'; did you mean 'smoke'?"),
        ("profil=smoke", "unknown config key 'profil'; did you mean 'profile'?"),
        ("profile=mine.yaml", "teacher: weight: unknown weight 'emd'; choose one of"),
        ("profile=alike.yaml", "published is the unknown table 'imagenet46'; did you mean 'imagenet64'?"),
        ("profile=other.yaml", "unknown extractor 'digits'; did you mean 'digits-cnn'?"),
        ("profile=imagenet64", "the extractor 'inception-v3-compat' needs the weights weights-inception-2015-12-05-"),
        (
            "profile=lpips.yaml",
            "nowhere/vgg16-397923af.pth: no such file, and the metric lpips needs it; set FEWSTEP_LPIPS",
        ),
    ],
)
def test_snakemake_stops_before_any_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, message: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # no weights there
    monkeypatch.setenv("FEWSTEP_LPIPS", "nowhere")
    write_profile(tmp_path / "mine.yaml", {"teacher.weight": "emd"})
    write_profile(tmp_path / "alike.yaml", {"published": "imagenet46"})
    write_profile(tmp_path / "other.yaml", {"extractor": "digits"})
    write_profile(tmp_path / "lpips.yaml", PERCEPTUAL)
    fails(message, "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "1", "--config", config, cwd=tmp_path)
    assert not (tmp_path / "results").exists()
