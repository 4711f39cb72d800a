"""The whole workflow once, with the smoke profile in a copy of the repository; and what an edit makes it do again."""

import csv
import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from harness.addresses import TEACHER
from harness.workspace import Workspace
from tests.workflow.conftest import run

COLUMNS = (
    "profile,backend,method,variant,sampler,guidance,steps,nfe,params,seed,n_samples,fid,is,kid,precision,recall,"
    "updates,train_passes,train_seconds,peak_memory_mb,images_per_second,convention,identity"
)
COMMAND = ("snakemake", "--cores", "2", "--config", "profile=smoke")
WORKSPACE = Workspace("smoke")
RUNS = list(WORKSPACE.runs())
PAIRED = {WORKSPACE.teacher(run) for run in RUNS if run.method == "dmd"}
REPORTING = {"table", "claims", "figures", "report"}
TRAINING = {"teacher", "distill", "distill_keeping_snapshots"}
OF_EACH_RUN = ("sample_", "evaluate_", "select_")
IMAGES = 32  # a batch
COSTS = {(TEACHER, k): (60, 60 * 3 * IMAGES) for k in (1, 2, 4)} | {
    ("moment-matching/alternating", 2): (30, 30 * 5 * IMAGES),
    ("moment-matching/instant", 2): (10, 10 * 10 * IMAGES),
    ("progressive", 2): (30, 30 * 5 * IMAGES),
    ("progressive", 1): (60, 60 * 5 * IMAGES),  # its parent's too
    ("consistency-distillation", 2): (30, 30 * 6 * IMAGES),
    ("consistency-distillation", 1): (30, 30 * 6 * IMAGES),
    ("dmd", 1): (30, 15 * (4 + 8) * IMAGES + 64 * 2),  # and the pairs
}
"""Updates, and passes of an image: forward 1, backward 2, along the parameters 2."""


@pytest.fixture(scope="module")
def finished(repository: Path) -> Path:
    """The copy after one run of the workflow."""
    result = run(*COMMAND, cwd=repository, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    return repository


@pytest.fixture
def results(finished: Path) -> Path:
    return finished / "results" / "runs" / "smoke"


@pytest.fixture
def rows(results: Path) -> list[dict[str, str]]:
    return read_table(results, "main")


def read_table(results: Path, name: str) -> list[dict[str, str]]:
    with (results / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_run_leaves_its_files_and_nothing_half_done(results: Path) -> None:
    for address in RUNS:
        names = {"train.json", "train.jsonl", "sampling.json"}
        names |= {f"{step}.{kind}" for step in ("train", "sample", "evaluate") for kind in ("log", "benchmark.tsv")}
        weights = {"teacher", "second_moments"} if address.method == TEACHER else {"student"}
        names |= {f"{name}.safetensors" for name in weights}
        if address in PAIRED:
            names |= {"pairs.safetensors", "pairs.log"}
        for setting in WORKSPACE.settings(address):
            names |= {f"samples-{setting.name}.npz", f"metrics-{setting.name}.json"}
        if WORKSPACE.during(address):
            names |= {"snapshots", "select.log", "select.benchmark.tsv"}
            names |= {f"selected-{setting.name}.json" for setting in WORKSPACE.settings(address)}
        folder = results / address.folder
        assert {path.name for path in folder.iterdir()} == names
        assert all((folder / name).stat().st_size > 0 for name in names)
        seconds = (folder / "train.benchmark.tsv").read_text().split()
        assert seconds[0] == "s"
        assert json.loads((folder / "train.json").read_text())["params"] > 0


def test_everything_else_is_there(results: Path) -> None:
    expected = [f"data/{split}.npz" for split in ("train", "heldout")] + ["extractor.json", "report.html"]
    expected += [f"reference/{name}" for name in ("train.npz", "heldout.npz", "metrics-real-data.json")]
    expected += [f"tables/{name}.{kind}" for name in ("main", "published") for kind in ("csv", "md", "tex", "html")] + [
        "tables/claims.csv",
        "tables/claims.md",
    ]
    expected += [
        f"tables/{name}.{kind}" for name in ("statistics", "comparisons", "selection") for kind in ("csv", "md")
    ]
    expected += [f"logs/{rule}.log" for rule in ("data", "extractor", "reference", *REPORTING)]
    for name in expected:
        assert (results / name).stat().st_size > 0, name
    figures = {path.name for path in (results / "figures").iterdir()}
    assert len(figures) >= 2 * 3
    assert figures >= {"fid-against-n.png", "selection.png"}
    assert {Path(name).stem for name in figures if name.endswith(".png")} == {
        Path(name).stem for name in figures if name.endswith(".svg")
    }


def test_the_table_has_the_agreed_columns(results: Path) -> None:
    assert (results / "tables" / "main.csv").read_text().splitlines()[0] == COLUMNS


def test_the_table_has_every_row_of_the_profile(rows: list[dict[str, str]]) -> None:
    expected = {
        (run.backend, run.method, run.variant, setting.sampler, str(setting.steps), setting.guidance, str(run.seed))
        for run in RUNS
        for setting in WORKSPACE.settings(run)
    }
    keys = ("backend", "method", "variant", "sampler", "steps", "guidance", "seed")
    found = [tuple(float(row[key] or 0) if key == "guidance" else row[key] for key in keys) for row in rows]
    generated = [row for row in found if row[1] != "real-data"]
    assert len(found) == len(generated) + 1
    assert len(generated) == len(set(generated)) == len(expected)
    assert set(generated) == expected


def test_the_numbers_are_plausible(rows: list[dict[str, str]]) -> None:
    assert len({row["identity"] for row in rows}) == 1
    floor = next(float(row["fid"]) for row in rows if row["method"] == "real-data")
    for row in rows:
        assert (row["profile"], row["n_samples"]) == ("smoke", "500")
        assert (row["convention"] == "final") == (row["method"] != "real-data")
        assert float(row["fid"]) >= floor > 0
        assert 1 <= float(row["is"]) <= 10
        assert 0 <= float(row["precision"]) <= 1
        if row["method"] != "real-data":
            assert int(row["nfe"]) == int(row["steps"]) * (1 if float(row["guidance"]) == 0 else 2)
            assert (int(row["updates"]), int(row["train_passes"])) == COSTS[row["method"], int(row["steps"])]
            assert min(float(row[key]) for key in ("train_seconds", "peak_memory_mb", "images_per_second")) > 0


def test_every_row_has_its_statistics_and_its_comparison(results: Path, rows: list[dict[str, str]]) -> None:
    statistics, compared = (read_table(results, name) for name in ("statistics", "comparisons"))
    settings = ("backend", "method", "variant", "sampler", "steps", "guidance")
    generated = [row for row in rows if row["method"] != "real-data"]
    assert {tuple(row[key] for key in settings) for row in statistics} == {
        tuple(row[key] for key in settings) for row in generated
    }
    assert sum(int(row["seeds"]) for row in statistics) == len(generated)
    for row in statistics:
        assert 0 < float(row["fid_low"]) < float(row["fid"]) < float(row["fid_high"])
        assert row["interval"] == ("training seeds" if int(row["seeds"]) > 1 else "sampling")
        assert 0 < float(row["sampling_log_se"]) < 0.1
        assert 0.9 < float(row["fid_infinity"]) / float(row["fid"]) < 1
    methods = {(row["method"], row["backend"]) for row in compared}
    assert methods >= {("progressive", "torch"), ("teacher", "jax")}
    assert {(row["steps"], row["verdict"]) for row in compared} == {("2", "undecided")}, "of one common seed"


def test_the_best_of_n_evaluations_stands_apart(results: Path, rows: list[dict[str, str]]) -> None:
    runs = [run for run in RUNS if WORKSPACE.during(run)]
    table = read_table(results, "selection")
    assert len(table) == len(runs) == 1
    assert {row["convention"] for row in table} == {"best of 3 evaluations"}
    assert "best of" not in {row["convention"][:7] for row in rows}
    for address in runs:
        record = json.loads((results / address.folder / "selected-ancestral-k2.json").read_text())
        fids = record["extra"]["fid_by_update"]
        assert set(fids) == {"4", "8", "10"}
        assert record["row"]["fid"] == pytest.approx(min(fids.values()))
        assert fids[str(record["extra"]["best_update"])] == min(fids.values())
        assert record["extra"]["fid_last"] == fids["10"]
        assert record["extra"]["fid_fresh"] not in fids.values()
        assert record["row"]["n_samples"] == record["identity"]["n_samples"] == 100


class Links(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (tag == "link" and name == "href"):
                self.fetched.append(value or "")
        self.images += tag in ("img", "svg")


def test_the_report_needs_no_other_file(results: Path) -> None:
    text, links = (results / "report.html").read_text(), Links()
    links.feed(text)
    assert links.images >= 3
    assert all(link.startswith("data:") for link in links.fetched)
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?(?!data:|#)", text)


def planned(repository: Path) -> dict[str, int]:
    """How many jobs of each rule a run would do now."""
    result = run(*COMMAND, "--dry-run", "--quiet", "rules", cwd=repository)
    assert result.returncode == 0, result.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", result.stdout + result.stderr, re.MULTILINE))
    return {rule: int(count) for rule, count in jobs.items() if rule not in ("all", "total")}


def test_a_second_run_has_nothing_to_do(finished: Path) -> None:
    result = run(*COMMAND, cwd=finished)
    assert result.returncode == 0
    assert "Nothing to be done" in result.stderr + result.stdout
    assert planned(finished) == {}


@pytest.fixture
def append(finished: Path) -> Iterator[object]:
    """Append a line to files of the copy; they are as before when the test ends."""
    before: dict[Path, str] = {}

    def append(line: str, *names: str) -> None:
        for path in (finished / name for name in names):
            before[path] = path.read_text()
            path.write_text(f"{before[path]}\n{line}\n")

    yield append
    for path, text in before.items():
        path.write_text(text)


def test_a_comment_in_the_objective_changes_nothing(finished: Path, append) -> None:
    append("# a comment", "harness/moment_matching.py", "harness/training.py", "harness/metrics/scores.py")
    assert planned(finished) == {}


def test_an_edit_of_the_objective_trains_its_students_again(finished: Path, append) -> None:
    append("EDITED = 1 + 1", "harness/moment_matching.py")
    jobs = planned(finished)
    students = sum(run.method.startswith(("moment-matching", "dmd")) for run in RUNS)
    assert jobs.pop("distill") + jobs.pop("distill_keeping_snapshots") == students
    assert "teacher" not in jobs
    selected = sum(WORKSPACE.during(run) is not None for run in RUNS)
    assert sum(count for rule, count in jobs.items() if rule.startswith(OF_EACH_RUN)) == 2 * students + selected
    assert {rule for rule in jobs if not rule.startswith(OF_EACH_RUN)} == REPORTING


def test_an_edit_of_a_backend_trains_its_networks_again(finished: Path, append) -> None:
    append("EDITED = 1 + 1", "harness/networks/jax.py")
    jobs = planned(finished)
    of_jax = [run for run in RUNS if run.backend == "jax"]
    assert jobs["teacher"] + jobs["distill"] == len(of_jax)


def test_an_edit_of_the_reporting_only_reports_again(finished: Path, append) -> None:
    modules = [path.relative_to(finished).as_posix() for path in (finished / "harness" / "reporting").glob("*.py")]
    append("EDITED = 1 + 1", *modules)
    assert planned(finished).keys() == REPORTING


def test_another_number_of_images_trains_nothing_again(finished: Path) -> None:
    profile = finished / "workflows" / "config" / "smoke.yaml"
    before = profile.read_text()
    assert before.count("n_samples: 500") == 1
    try:
        profile.write_text(before.replace("n_samples: 500", "n_samples: 400"))
        jobs = planned(finished)
    finally:
        profile.write_text(before)
    assert not jobs.keys() & (TRAINING | {"data", "extractor"})
    assert jobs.keys() >= {"reference", "sample_teacher", "evaluate_teacher", *REPORTING}


def test_snakemake_writes_its_report(finished: Path) -> None:
    result = run(*COMMAND, "--report", "workflow.html", cwd=finished)
    assert result.returncode == 0, result.stderr
    text = (finished / "workflow.html").read_text()
    assert "main.html" in text
    assert "one row for each method, backend, sampler and number of steps" in " ".join(text.split())


def test_samples_of_other_weights_are_not_scored(finished: Path, results: Path) -> None:
    address = RUNS[0]
    file = results / address.folder / "sampling.json"
    before = file.read_text()
    written = file.stat().st_mtime_ns
    try:
        file.write_text(json.dumps(json.loads(before) | {"checkpoint": "0" * 64}))
        result = run("fewstep", "evaluate", "--backend", address.backend, "--profile", "smoke", cwd=finished)
    finally:
        file.write_text(before)
        os.utime(file, ns=(written, written))  # else its scores would be older than it
    assert result.returncode == 2
    assert "the samples are of other weights than its checkpoint's" in result.stderr


def test_a_baseline_is_one_file_and_a_name_in_a_profile(finished: Path) -> None:
    """One student for all step counts, which every consistency method has."""
    (finished / "baselines" / "every_step.py").write_text(
        "from harness.moment_matching import AlternatingMomentMatching\n\n\n"
        "class EveryStep(AlternatingMomentMatching):\n"
        '    id = "every-step"\n\n'
        "    @classmethod\n"
        "    def students(cls, steps):\n"
        '        return {"all": steps}\n'
    )
    methods = yaml.safe_load((finished / "workflows/config/smoke.yaml").read_text())["methods"]
    changed = [{**methods[0], "id": "every-step", "steps": [2, 1], "repeats": {}}]
    profile = {"extends": "smoke", "methods": changed, "ablations": [], "evaluation": {"during": None}}
    (finished / "mine.yaml").write_text(yaml.safe_dump(profile))
    result = run("snakemake", "-n", "--cores", "2", "--config", "profile=mine.yaml", cwd=finished)
    assert result.returncode == 0, result.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", result.stdout, re.MULTILINE))
    assert jobs["distill"] == jobs["sample_all"] == "2"
