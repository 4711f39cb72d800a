"""The regression gate: its limits by an independent computation, its verdicts, its file, and what it refuses."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.errors import UserError
from harness.reporting import gate_output
from harness.reporting.gate import (
    ERROR_RATE,
    FILE,
    Judgement,
    MeasuredRow,
    compare,
    configuration,
    grouped,
    limit,
    load_reference,
)
from harness.verbs import accept, check
from harness.workspace import Workspace
from tests.profiles import MATCHING, write_profile

SEEDS = [0, 1, 2, 3, 4]
SOFTWARE = {
    "fewstep": "0.1.0", "git_commit": "c0ffee", "git_dirty": False, "versions": {"numpy": "2"}, "platform": "Linux",
    "cpu": "some", "cores": 2,
}  # fmt: skip
RNG = np.random.default_rng(0)
LOG_FIDS = {f"{name} {seed}": 0.05 * RNG.standard_normal() for name in ("a1", "a4", "d2", "k2") for seed in range(20)}


def open_run(folder: Path, seeds: list[int], changes: dict[str, Any] | None = None) -> Workspace:
    """A workspace of three teacher rows and one student's, without files."""
    folder.mkdir(exist_ok=True)
    return Workspace(
        write_profile(folder / "mine.yaml", {"backends": ["torch"], "seeds": seeds, **(changes or {})}), folder
    )


def write_run(workspace: Workspace, shift: float = 0.0, **stages: dict[str, Any]) -> Workspace:
    """Records of every run: log FIDs vary by 0.05 over seeds, and the student's are shifted."""
    for address in workspace.runs():
        for setting in workspace.settings(address):
            student = address.method == MATCHING
            name = "k2" if student else f"{setting.sampler[0]}{setting.steps}"
            fid = np.exp(-1.0 + LOG_FIDS[f"{name} {address.seed}"] + shift * student)
            row = {
                "profile": "mine", "backend": address.backend, "method": address.method, "variant": address.variant,
                "sampler": setting.sampler, "guidance": 0.0, "steps": setting.steps, "nfe": setting.steps, "params": 1,
                "seed": address.seed, "n_samples": 20, "fid": fid, "is": 5.0, "kid": 1e-5, "precision": 0.9,
                "recall": 0.8, "updates": 6, "train_passes": 6, "train_seconds": 1.0, "peak_memory_mb": 1.0,
                "images_per_second": 1.0, "convention": "final", "identity": "aaaa",
            }  # fmt: skip
            provenance = {stage: SOFTWARE | stages.get(stage, {}) for stage in ("training", "sampling", "evaluation")}
            provenance |= {"config": workspace.record_digest(address)}
            extra = {"is_std": 0.1, "kid_std": 0.0, "fid_heldout": 0.2, "nn_distance": 4.0}
            content = {"row": row, "extra": extra, "identity": {"extractor": "some"}, "provenance": provenance}
            path = workspace.run(address) / f"metrics-{setting.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    return workspace


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A folder with an accepted reference of five seeds."""
    accept.run(write_run(open_run(tmp_path / "reference-run", SEEDS)), "the first", tmp_path / "reference")
    return tmp_path / "reference"


def judgements(reference: Path, workspace: Workspace) -> dict[str, Judgement]:
    return {found.label: found for found in compare(load_reference(reference), reference, workspace)}


TEACHER_ROWS = [f"torch teacher {name}" for name in ("ancestral-k1", "ancestral-k4", "ddim-k2")]
STUDENT_ROW = f"torch {MATCHING} ancestral-k2"


@pytest.mark.parametrize("seeds", [[10], [10, 11, 12]])
def test_limits_are_those_of_the_textbook(tmp_path: Path, reference: Path, seeds: list[int]) -> None:
    """From the values that were written, in float64: pooled variances, a t quantile at the corrected level."""
    found = judgements(reference, write_run(open_run(tmp_path / "run", seeds)))
    assert set(found) == {*TEACHER_ROWS, STUDENT_ROW}
    values = {name: np.array([LOG_FIDS[f"{name} {seed}"] for seed in SEEDS]) for name in ("a1", "a4", "d2", "k2")}
    variance = {name: np.sum((v - v.mean()) ** 2) / 4 for name, v in values.items()}
    teachers = np.linalg.eigvalsh(np.cov([values[name] for name in ("a1", "a4", "d2")]))
    kinds = {
        "teacher": (teachers.mean(), 4 * teachers.sum() ** 2 / (teachers**2).sum()),
        "student": (variance["k2"], 4),
    }
    for label, name in zip([*TEACHER_ROWS, STUDENT_ROW], values, strict=True):
        pooled, freedom = kinds["student" if name == "k2" else "teacher"]
        limit = stats.t.isf(ERROR_RATE / 4, freedom) * np.sqrt(pooled * (1 / len(seeds) + 1 / len(SEEDS)))
        assert found[label].limit == pytest.approx(limit, rel=1e-4)
        run = np.mean([LOG_FIDS[f"{name} {seed}"] for seed in seeds])
        assert found[label].shift == pytest.approx(run - values[name].mean(), abs=1e-5)
        assert found[label].paired_shift is None


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9, 0.99])
def test_clean_runs_pass_at_the_stated_rate(shared: float) -> None:
    """References of rows that correlate by `shared`, as through a teacher; what a clean run then exceeds is known."""
    rng, rows, n, rates = np.random.default_rng(1), 4, 10, []
    key = {"backend": "b", "variant": "default", "sampler": "ancestral", "guidance": 0.0, "method": "m"}
    scores = {"is": 1.0, "kid": 0.0, "precision": 1.0, "recall": 1.0}
    for _ in range(1500):
        logs = np.sqrt(1 - shared) * rng.standard_normal((n, rows)) + np.sqrt(shared) * rng.standard_normal((n, 1))
        built = [
            MeasuredRow.model_construct(**key, **scores, steps=1 + row, seed=seed, fid=np.exp(logs[seed, row]))
            for row in range(rows)
            for seed in range(n)
        ]
        groups = grouped(built)
        reach = logs.mean(axis=0) + limit(groups, next(iter(groups)), 1)
        rates.append(stats.norm.sf(reach).sum())  # at most: rows that correlate fail together
    error = np.std(rates) / np.sqrt(len(rates))
    assert error < 0.3 * ERROR_RATE
    assert 0.6 * ERROR_RATE - 3 * error < np.mean(rates) < 1.4 * ERROR_RATE + 3 * error


def test_a_worse_student_fails_and_a_better_one_does_not(tmp_path: Path, reference: Path, capsys) -> None:
    for shift, verdict, status in [(0.0, "ok", None), (1.0, "regression", 1), (-1.0, "improvement", None)]:
        workspace = write_run(open_run(tmp_path / "run", [10]), shift)
        assert judgements(reference, workspace)[STUDENT_ROW].verdict == verdict
        options = {"against": reference, "junit": None, "as_json": False, "verbose": False}
        if status is None:
            check.run(workspace, **options)
        else:
            with pytest.raises(SystemExit) as error:
                check.run(workspace, **options)
            assert error.value.code == status
        *moved, summary = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in moved] == ([] if verdict == "ok" else [verdict])
        assert summary.startswith("1 of 4 rows regressed" if status else "ok: 4 rows")
        assert "(5 seeds: the first)" in summary


def test_an_unchanged_run_of_the_same_seed_has_not_moved(tmp_path: Path, reference: Path) -> None:
    found = judgements(reference, write_run(open_run(tmp_path / "run", [3])))
    assert all(abs(judgement.paired_shift) < 1e-5 for judgement in found.values())


def test_verbose_and_json_have_every_row(tmp_path: Path, reference: Path, capsys) -> None:
    workspace = write_run(open_run(tmp_path / "run", [10]))
    check.run(workspace, reference, None, as_json=False, verbose=True)
    assert len(capsys.readouterr().out.splitlines()) == 5
    check.run(workspace, reference, None, as_json=True, verbose=False)
    content = json.loads(capsys.readouterr().out)
    assert (content["regressions"], len(content["rows"])) == (0, 4)
    student = next(row for row in content["rows"] if row["row"] == STUDENT_ROW)
    assert student["run"]["fid"] == pytest.approx(np.exp(LOG_FIDS["k2 10"] - 1))
    assert student["run"]["recall"] == 0.8


def test_an_extractor_without_logits_has_no_inception_score(tmp_path: Path) -> None:
    runs = [write_run(open_run(tmp_path / name, seeds)) for name, seeds in (("reference-run", SEEDS), ("run", [10]))]
    for path in tmp_path.rglob("metrics-*.json"):
        edit(path, lambda record: record["row"].update({"is": None}))
    accept.run(runs[0], "first", tmp_path / "reference")
    found = judgements(tmp_path / "reference", runs[1])[STUDENT_ROW]
    assert "KID" in gate_output.describe(found)
    assert "IS" not in gate_output.describe(found)


def junit(tmp_path: Path, reference: Path, shift: float) -> ET.Element:
    workspace = write_run(open_run(tmp_path / "run", [10]), shift)
    return ET.fromstring(gate_output.junit(compare(load_reference(reference), reference, workspace), "mine"))


def elements(root: ET.Element) -> dict[str, set[str]]:
    """Attributes by element."""
    found: dict[str, set[str]] = {}
    for element in root.iter():
        found.setdefault(element.tag, set()).update(element.attrib)
    return found


def test_junit_has_the_shape_of_pytests(tmp_path: Path, reference: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_a():\n    print('out')\n\ndef test_b():\n    assert 0\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-o",
        "junit_logging=system-out",
        "--junitxml=oracle.xml",
        ".",
    ]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60)
    theirs = elements(ET.parse(tmp_path / "oracle.xml").getroot())
    root = junit(tmp_path, reference, shift=1.0)
    ours = elements(root)
    for tag, attributes in ours.items():
        assert attributes <= theirs[tag] | {"name"}, tag
    assert {"testsuites", "testsuite", "testcase", "failure", "system-out"} == set(ours)
    (suite,) = root
    assert suite.attrib == {"name": "mine", "tests": "4", "failures": "1", "errors": "0", "skipped": "0", "time": "0"}
    cases = {case.attrib["name"]: case for case in suite}
    assert list(cases) == [*TEACHER_ROWS, STUDENT_ROW]
    failed = [name for name, case in cases.items() if case.find("failure") is not None]
    assert failed == [STUDENT_ROW]
    failure = cases[STUDENT_ROW][0]
    assert re.fullmatch(r"FID \+\d+\.\d%, limit \+\d+\.\d%", failure.attrib["message"])
    assert "recall 0.8 -> 0.8" in failure.text
    assert [child.tag for child in junit(tmp_path, reference, shift=0.0).iter("failure")] == []


def test_a_reference_keeps_the_history_and_one_line_for_each_row(tmp_path: Path, reference: Path) -> None:
    first = load_reference(reference)
    accept.run(write_run(open_run(tmp_path / "again", [5, 6, 7, 8, 9])), " better now ", reference)
    second = load_reference(reference)
    assert [entry.reason for entry in second.history] == ["the first", "better now"]
    assert second.history[0] == first.history[0]
    assert second.history[1].seeds == [5, 6, 7, 8, 9]
    assert second.history[1].git_commit == "c0ffee"
    assert {row.seed for row in second.rows} == {5, 6, 7, 8, 9}
    text = (reference / FILE).read_text()
    assert sum(line.startswith('  {"backend": "torch"') for line in text.splitlines()) == len(second.rows) == 20
    assert len(second.rows[0].model_dump_json()) < 300


def test_seeds_that_share_a_teacher_do_not_count(tmp_path: Path) -> None:
    """Repeats vary less than whole runs."""
    repeats = {"methods.0.repeats": {"torch": {"k2": [15, 16]}}}
    accept.run(write_run(open_run(tmp_path / "run", SEEDS, repeats)), "first", tmp_path / "reference")
    assert {row.seed for row in load_reference(tmp_path / "reference").rows} == set(SEEDS)


@pytest.mark.parametrize(
    "key",
    [
        "seeds",
        "log_every",
        "evaluation.batch",
        "evaluation.fid_parts",
        "evaluation.during",
        "methods.0.checkpoint_every",
    ],
)
def test_what_moves_no_number_is_no_other_configuration(tmp_path: Path, key: str) -> None:
    before = open_run(tmp_path / "a", [0])
    values = {"seeds": [1, 2], "evaluation.fid_parts": [2], "evaluation.during": {"every": 3, "n_samples": 20}}
    after = open_run(tmp_path / "b", [0], {key: values.get(key, 3)})
    assert configuration(before) == configuration(after)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("teacher.updates", 7, "of another configuration (teacher.updates is 7, expected 6); use the profile"),
        ("evaluation.n_samples", 30, "evaluation.n_samples is 30, expected 20"),
        (
            "methods.0.options",
            {"weight": "snr"},
            f"methods.{MATCHING} (default).options is {{'weight': 'snr'}}, expected None",
        ),
        ("teacher.samplers.ddim", [2, 4], "teacher.samplers.ddim is [2, 4], expected [2]"),
    ],
)
def test_another_configuration_is_named(tmp_path: Path, reference: Path, key: str, value: Any, message: str) -> None:
    workspace = write_run(open_run(tmp_path / "run", [10]))
    changed = open_run(tmp_path / "run", [10], {key: value})
    assert workspace.root == changed.root
    with pytest.raises(UserError, match=re.escape(f"{reference / FILE}: of another")) as error:
        judgements(reference, changed)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def keep(content: dict[str, Any], which: Any) -> None:
    content["rows"] = [row for row in content["rows"] if which(row)]


def test_runs_that_cannot_be_compared(tmp_path: Path, reference: Path) -> None:
    workspace = write_run(open_run(tmp_path / "run", [10]))
    student = next(iter(workspace.root.rglob("moment*/default/k2/seed10/metrics-*.json")))
    original = student.read_text()

    def fails(message: str) -> None:
        with pytest.raises(UserError, match=re.escape(message)):
            judgements(reference, workspace)
        student.write_text(original)

    edit(student, lambda record: record["provenance"].update(config="another"))
    fails(f"{student}: of another configuration than the profile's; run the profile again")
    edit(student, lambda record: (record["row"].update(identity="bbbb"), record["identity"].update(extractor="other")))
    fails(f"{student}: another metric than in")
    edit(student, lambda record: record["row"].update(fid=0.0))
    fails(f"{student}: fid is 0.0, but should be greater than 0")
    student.unlink()
    fails(f"{student}: the record cannot be read (No such file or directory); evaluate its samples first")
    for path in workspace.root.rglob("metrics-*.json"):
        edit(path, lambda record: record["row"].update(identity="bbbb"))
    student.write_text(original.replace("aaaa", "bbbb"))
    with pytest.raises(UserError, match="of another metric \\(identity aaaa, the run's is bbbb\\); accept a new"):
        judgements(reference, workspace)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: keep(c, lambda r: r["seed"] != 4), "has 4 seeds, fewer than 5; accept a run of more seeds"),
        (lambda c: c["rows"][0].update(seed=9), "torch teacher ancestral-k4 has other seeds than the first row"),
        (lambda c: c["rows"].append(c["rows"][0]), "torch teacher ancestral-k1 has a seed twice; accept a reference"),
        (lambda c: c["rows"][2].update(fid=-1.0), "rows.2.fid is -1.0, but should be greater than 0"),
        (lambda c: c["rows"][2].update(fdi=1.0), "unknown key rows.2.fdi; did you mean 'fid'?"),
        (lambda c: c.update(format=2), "format is 2"),
        (lambda c: c.pop("history"), "the key history is missing"),
        (lambda c: keep(c, lambda r: r["steps"] != 4), "the reference has no row torch teacher ancestral-k4"),
        (lambda c: c["rows"].extend({**r, "steps": 3} for r in c["rows"][:5]), "the run has no row torch teacher"),
    ],
)
def test_references_that_cannot_be_used(tmp_path: Path, reference: Path, change: Any, message: str) -> None:
    workspace = write_run(open_run(tmp_path / "run", [10]))
    edit(reference / FILE, change)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        judgements(reference, workspace)
    assert str(error.value).startswith(str(reference / FILE))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"sampling": {"git_dirty": True}}, "sampling ran with uncommitted changes; commit them and run"),
        ({"evaluation": {"git_commit": "other"}}, "evaluation: git_commit is other, expected c0ffee"),
        ({"evaluation": {"versions": {"numpy": "3"}}}, "evaluation: versions.numpy is 3, expected 2"),
        ({"sampling": {"cpu": "another"}}, "sampling: cpu is another, expected some"),
    ],
)
def test_runs_that_are_no_reference(tmp_path: Path, reference: Path, stages: Any, message: str) -> None:
    before = (reference / FILE).read_bytes()
    workspace = write_run(open_run(tmp_path / "run", SEEDS), **stages)
    with pytest.raises(UserError, match=re.escape(message)):
        accept.run(workspace, "because", reference)
    assert (reference / FILE).read_bytes() == before


def test_a_run_of_unknown_origin_is_no_reference(tmp_path: Path, reference: Path) -> None:
    workspace = write_run(open_run(tmp_path / "run", SEEDS))
    path = next(iter(workspace.root.rglob("metrics-*.json")))
    for change, message in [
        (lambda record: record["provenance"]["training"].pop("cpu"), "training has no cpu, so what ran it is unknown"),
        (lambda record: record["provenance"].pop("training"), "training has no git_dirty, so what ran it is unknown"),
    ]:
        edit(path, change)
        with pytest.raises(UserError, match=re.escape(f"{path}: {message}; run the profile again")):
            accept.run(workspace, "because", reference)


def test_a_check_that_is_refused_leaves_no_earlier_verdict(tmp_path: Path, reference: Path) -> None:
    workspace, junit_file = write_run(open_run(tmp_path / "run", [10])), tmp_path / "check.xml"
    check.run(workspace, reference, junit_file, as_json=False, verbose=False)
    assert junit_file.exists()
    (reference / FILE).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        check.run(workspace, reference, junit_file, as_json=False, verbose=False)
    assert not junit_file.exists()


def test_a_reference_needs_a_reason_and_seeds_and_a_whole_run(tmp_path: Path, reference: Path) -> None:
    before = (reference / FILE).read_bytes()
    workspace = write_run(open_run(tmp_path / "run", SEEDS))
    with pytest.raises(UserError, match="--reason is empty; say why"):
        accept.run(workspace, " ", reference)
    with pytest.raises(UserError, match="profile 'mine': seeds holds 4, fewer than 5; add some"):
        accept.run(open_run(tmp_path / "run", SEEDS[:4]), "because", reference)
    next(iter(workspace.root.rglob("metrics-*.json"))).unlink()
    with pytest.raises(UserError, match="the record cannot be read"):
        accept.run(workspace, "because", reference)
    assert (reference / FILE).read_bytes() == before
    assert [path.name for path in reference.iterdir()] == [FILE]
