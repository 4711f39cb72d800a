"""The committed results of the shapes profile: complete, of one identity, within their bars, as the README shows."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from harness.workspace import Workspace

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "results/reference/shapes"
ALTERNATING = "moment-matching/alternating"
GUIDANCE = 0.5  # of the teacher that students are distilled from
MANY = 16
BASE = 0.80  # attribute accuracy of the base model with its best guidance
OVER_BASE = {8: 0.95, 4: 0.90}  # of the alternating students, by step count
RETRIEVAL = 0.90


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "main.csv")


def mean(results: pd.DataFrame, column: str, **where: object) -> float:
    """The mean over the seeds of the rows that have these values."""
    rows = results.loc[(results[list(where)] == pd.Series(where)).all(axis=1)]
    assert len(rows) == rows["seed"].nunique(dropna=False) > 0, where
    return float(rows[column].mean())


def test_every_row_of_the_profile_is_there_with_one_identity(results: pd.DataFrame) -> None:
    workspace = Workspace("shapes")
    expected = {
        (run.backend, run.method, setting.sampler, setting.steps, run.guidance or setting.guidance, run.seed)
        for run in workspace.runs()
        for setting in workspace.settings(run)
    }
    trained = results[results.method != "real-data"]
    keys = ["backend", "method", "sampler", "steps", "guidance", "seed"]
    assert set(trained[keys].itertuples(index=False, name=None)) == expected
    assert len(trained) == len(expected)
    assert results["identity"].nunique() == 1
    assert set(trained["convention"]) == {"final"}


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_images_show_what_the_captions_say(results: pd.DataFrame, backend: str) -> None:
    teachers = results[(results.backend == backend) & (results.method == "teacher")]
    best = teachers["attribute_accuracy"].max()
    assert best >= BASE
    for steps, bar in OVER_BASE.items():
        where = {"backend": backend, "method": ALTERNATING, "steps": steps, "guidance": GUIDANCE}
        assert mean(results, "attribute_accuracy", **where) >= bar * best


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_guidance_raises_the_clip_score(results: pd.DataFrame, backend: str) -> None:
    teacher = {"backend": backend, "method": "teacher", "steps": MANY}
    assert mean(results, "clip", **teacher, guidance=1.0) > mean(results, "clip", **teacher, guidance=0.0)
    (claim,) = (line for line in pd.read_csv(FOLDER / "claims.csv").to_dict("records") if line["id"] == "C6")
    assert claim["verdict"] in {"holds", "undecided"}, "its part on CLIP scores wants the intervals apart"


def test_the_clip_finds_the_captions_of_held_out_images() -> None:
    assert json.loads((FOLDER / "clip.json").read_text())["retrieval_heldout"] >= RETRIEVAL


def test_the_readme_shows_these_numbers(results: pd.DataFrame) -> None:
    text = (ROOT / "README.md").read_text()
    (section,) = re.findall(r"<!-- shapes -->(.*?)<!-- /shapes -->", text, re.S)
    lines = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in section.splitlines() if "|" in line]
    shown = [line for line in lines if line[1] in ("PyTorch", "JAX")]
    assert len(shown) >= 20
    for method, backend, guidance, steps, nfe, *scores in shown:
        name = {"base model": "teacher"}.get(method, method)
        where = {"backend": {"PyTorch": "torch", "JAX": "jax"}[backend], "method": name}
        where |= {"guidance": float(guidance), "steps": int(steps)}
        for column, score, digits in zip(("fid", "clip", "attribute_accuracy"), scores, (2, 1, 3), strict=True):
            assert score == f"{mean(results, column, **where):.{digits}f}", (method, backend, steps, column)
        assert mean(results, "nfe", **where) == int(nfe)


def test_its_provenance_names_one_clean_commit() -> None:
    provenance = json.loads((FOLDER / "provenance.json").read_text())
    assert re.fullmatch(r"[0-9a-f]{40}", provenance["git_commit"])
    assert provenance["git_dirty"] is False
    assert provenance["command"] == "snakemake --cores all --config profile=shapes"
