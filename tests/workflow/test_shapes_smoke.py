"""The text-to-image workflow once, with its own smoke profile, in a copy of the repository."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.addresses import TEACHER
from harness.datasets import ImageSet
from harness.datasets.archive import load_arrays
from harness.workspace import Workspace
from tests.workflow.conftest import run

COMMAND = ("snakemake", "--cores", "2", "--config", "profile=shapes-smoke")
WORKSPACE = Workspace("shapes-smoke")
RUNS = WORKSPACE.runs()
COLUMNS = (
    "profile,backend,method,variant,sampler,guidance,steps,nfe,params,seed,n_samples,fid,is,kid,precision,recall,clip,"
    "attribute_accuracy,updates,train_passes,train_seconds,peak_memory_mb,images_per_second,convention,identity"
)


@pytest.fixture(scope="module")
def finished(repository: Path) -> Path:
    """The copy after one run of the workflow."""
    result = run(*COMMAND, cwd=repository, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    return repository


@pytest.fixture(scope="module")
def results(finished: Path) -> Path:
    return finished / "results" / "runs" / "shapes-smoke"


def test_the_table_has_every_row_with_its_captions_scores(results: Path) -> None:
    content = (results / "tables" / "main.csv").read_text()
    assert content.splitlines()[0] == COLUMNS
    rows = list(csv.DictReader(content.splitlines()))
    expected = {
        (run.backend, run.method, run.guidance or setting.guidance, setting.steps)
        for run in RUNS
        for setting in WORKSPACE.settings(run)
    }
    generated = [row for row in rows if row["method"] != "real-data"]
    assert {(r["backend"], r["method"], float(r["guidance"]), int(r["steps"])) for r in generated} == expected
    assert len(generated) == len(expected)
    assert len({row["identity"] for row in rows}) == 1
    (real,) = (row for row in rows if row["method"] == "real-data")
    for row in generated:
        assert float(row["clip"]) < float(real["clip"])
        assert 0 <= float(row["attribute_accuracy"]) < float(real["attribute_accuracy"])
        doubled = row["method"] == TEACHER and float(row["guidance"]) > 0
        assert int(row["nfe"]) == int(row["steps"]) * (2 if doubled else 1)


def test_everything_else_is_there(results: Path) -> None:
    expected = ["report.html", "extractor.json", "clip.json", "text/train.npz", "text/heldout.npz", "tables/claims.csv"]
    for name in expected:
        assert (results / name).stat().st_size > 0, name
    assert json.loads((results / "clip.json").read_text())["retrieval_heldout"] >= 0.9
    figures = {path.stem for path in (results / "figures").glob("*.png")}
    assert figures >= {"guidance", "attributes", "prompts-torch", "prompts-jax"}
    assert not any(name.startswith(("samples-", "comparison-")) for name in figures), "scenes are no classes"


def test_methods_share_captions_and_noise(results: Path) -> None:
    heldout = ImageSet.load(results / "data" / "heldout.npz")
    for address in RUNS:
        for setting in WORKSPACE.settings(address):
            (labels,) = load_arrays(results / address.folder / f"samples-{setting.name}.npz", "labels")
            np.testing.assert_array_equal(labels, heldout.labels[: len(labels)])


def test_a_prompt_is_drawn_by_the_student_that_the_options_name(finished: Path) -> None:
    prompt = ("--prompt", "a red circle left of a small blue square", "--steps", 2, "--out", "a.png")
    result = run("fewstep", "sample", *prompt, "--profile", "shapes-smoke", cwd=finished)
    assert result.returncode == 0, result.stderr
    with Image.open(finished / "a.png") as image:
        assert image.size == (256, 256)
    assert "moment-matching-alternating/default/k2-w1" in result.stdout
    refused = run("fewstep", "sample", "--prompt", "a red circle", cwd=finished)
    assert refused.returncode == 2
    assert refused.stderr.strip() == "error: sample --prompt: say how many --steps, and which file to write (--out)"


def test_a_second_run_has_nothing_to_do(finished: Path) -> None:
    result = run(*COMMAND, "--dry-run", cwd=finished)
    assert "Nothing to be done" in result.stdout + result.stderr


def test_chains_and_pairs_of_a_guided_teacher_are_planned(repository: Path) -> None:
    """A student of a student, and pairs that are drawn with the guidance of the student that asks for them."""
    short = WORKSPACE.profile.methods[0].model_dump(mode="json") | {"backends": ["torch"]}
    short["optimiser"]["eps"] = 0.001  # what JSON writes for a smaller one is no number to YAML
    methods = [short | {"id": "progressive", "steps": [2, 1]}, short | {"id": "dmd", "steps": [1]}]
    profile = {"extends": "shapes", "methods": methods, "pairs": {"count": 64, "steps": 2}}
    (repository / "more.yaml").write_text(json.dumps(profile))
    result = run("snakemake", "--cores", "1", "--dry-run", "--config", "profile=more.yaml", cwd=repository)
    assert result.returncode == 0, result.stdout + result.stderr
    jobs = re.findall(r"^    input: (.*)\n    output: (\S+?),? .*$", result.stdout, re.M)
    folder = "results/runs/more/torch"
    inputs = {output.removeprefix(f"{folder}/"): needed.split(", ") for needed, output in jobs}
    first, second = (f"progressive/default/k{k}-w1/seed0/student.safetensors" for k in (2, 1))
    assert f"{folder}/{first}" in inputs[second]
    assert f"{folder}/{first}" not in inputs[first]
    assert (
        f"{folder}/teacher/default/teacher/seed0/pairs-w1.safetensors"
        in inputs["dmd/default/k1-w1/seed0/student.safetensors"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("text: {encoder: shapes-clop}", "unknown text encoder 'shapes-clop'; did you mean 'shapes-clip'?"),
        ("text: {encoder: t5}", "the text encoder 't5' has no weights of its own; name their folder (weights)"),
        ("evaluation: {clip: shapes-cnn}", "'shapes-cnn' is no CLIP, which the CLIP score needs"),
        ("data: {name: digits}", "text: the data set 'digits' has no captions"),
    ],
)
def test_what_cannot_work_is_told_before_anything_runs(repository: Path, changes: str, message: str) -> None:
    (repository / "wrong.yaml").write_text(f"extends: shapes\n{changes}\n")
    result = run("snakemake", "--cores", "1", "--dry-run", "--config", "profile=wrong.yaml", cwd=repository)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
