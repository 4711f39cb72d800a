"""How far each planted fault moves log FID, and how far clean runs of other seeds do, against the gate's limits.

`python -m tests.gate.measure RESULTS` writes `results/reference/gate/faults.md` beside the accepted reference; RESULTS
is an existing folder for the runs, half an hour of them on one core, of which none is done twice.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness.cli import THREAD_VARIABLES

RESULTS = Path(sys.argv[1]).absolute()
os.environ |= dict.fromkeys(THREAD_VARIABLES, "1") | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(RESULTS / "jax-cache")

from harness.config import PROFILE_FOLDER, REPOSITORY
from harness.files import write_atomic
from harness.reporting.gate import Judgement, compare, load_reference, measured_rows
from harness.reporting.records import load_records
from harness.workspace import Workspace
from tests.gate.planted import FAULTS, TOO_SMALL, run_missing

REFERENCE = REPOSITORY / "results/reference/gate"
CLEAN_SEEDS, FAULT_SEEDS = range(100, 120), range(100, 103)
STUDENT = "jax moment-matching/alternating ancestral-k8"


def run_gate(folder: str, **content: Any) -> Workspace:
    """The gate's profile with other content, run in a folder of RESULTS as far as it has not been."""
    place = RESULTS / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "gate.yaml").write_text(yaml.safe_dump({"extends": "gate", **content}))
    workspace = Workspace(str(place / "gate.yaml"), place)
    run_missing(workspace)
    return workspace


def run_faulty(fault: str, seed: int) -> Workspace:
    """The clean run of a seed with what the fault touches done anew: the alternating student, or all of them."""
    folder = f"{fault.replace(' ', '-')}/{seed}"
    if not (RESULTS / folder).exists():
        copy = (
            RESULTS / f"{folder}.partial"
        )  # a clean student that an interruption left in place would pass for a faulty
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(RESULTS / f"clean/{seed}", copy)
        of_teacher = fault == "no EMA of the teacher"
        shutil.rmtree(copy / "gate/jax" / ("" if of_teacher else "moment-matching-alternating"))
        copy.rename(RESULTS / folder)
    with FAULTS[fault]():
        return run_gate(folder, seeds=[seed])


def judge(workspace: Workspace) -> dict[str, Judgement]:
    """The gate's judgement of every row, by label."""
    return {found.label: found for found in compare(load_reference(REFERENCE), REFERENCE, workspace)}


def log_fids(workspace: Workspace) -> dict[str, dict[int, float]]:
    """By row and seed, whichever teacher."""
    rows = measured_rows(load_records(sorted(workspace.root.glob("*/*/*/*/seed*/metrics-*.json"))))
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row.label, {})[row.seed] = float(np.log(row.fid))
    return found


def table(header: str, rows: Iterable[Iterable[object]]) -> list[str]:
    """A Markdown table; the first column is text."""
    columns = header.count("|") + 1
    lines = [f"| {header} |", "|---|" + "---:|" * (columns - 1)]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""]


def faults(clean: dict[int, dict[str, Judgement]]) -> list[str]:
    """Each fault's effect on the alternating student, against the reference and the clean run of the same seed."""
    rows = []
    for fault in FAULTS:
        found = [judge(run_faulty(fault, seed))[STUDENT] for seed in FAULT_SEEDS]
        paired = [f.shift - clean[seed][STUDENT].shift for seed, f in zip(FAULT_SEEDS, found, strict=True)]
        caught = sum(f.verdict == "regression" for f in found)
        by = "tests/oracle" if fault in TOO_SMALL else "gate"
        shifts = ", ".join(f"{f.shift:+.2f}" for f in found)
        rows.append(
            [fault, f"{np.mean(paired):+.2f}", shifts, f"{found[0].limit:.2f}", f"{caught} of {len(found)}", by]
        )
    header = "fault | against the clean run of its seed | against the reference | limit | caught by the gate | held by"
    return table(header, rows)


def clean_runs(clean: dict[int, dict[str, Judgement]]) -> list[str]:
    """Twenty runs of one seed each against the reference."""
    rows = []
    for label in next(iter(clean.values())):
        found = [judgements[label] for judgements in clean.values()]
        accepted = deviation(np.log(row.fid) for row in found[0].reference)
        own, most = deviation(f.shift for f in found), max(f.shift for f in found)
        fid = np.exp(np.mean([np.log(row.fid) for row in found[0].reference]))
        alarms = sum(f.verdict == "regression" for f in found)
        rows.append([label, f"{fid:.3f}", accepted, own, f"{most:+.2f}", f"{found[0].limit:.2f}", alarms])
    header = "row | FID | sd of log FID, reference | sd, clean runs | largest shift | limit | false alarms"
    return table(header, rows)


def variation(clean: dict[int, dict[str, Judgement]]) -> list[str]:
    """What else might be held fixed: the teacher, or the arithmetic."""
    methods = yaml.safe_load((REPOSITORY / PROFILE_FOLDER / "gate.yaml").read_text())["methods"]
    first, *others = list(CLEAN_SEEDS)[:10]
    shared = log_fids(
        run_gate("shared", seeds=[first], methods=[m | {"repeats": {"jax": {"k8": others}}} for m in methods])
    )
    rows = [
        [label, deviation(f[label].shift for f in list(clean.values())[:10]), deviation(shared[label].values())]
        for label in shared
        if "teacher" not in label
    ]
    lines = table("row | sd of log FID, each student with a teacher of its own | all from one teacher", rows)
    rounding = []
    for seed in FAULT_SEEDS:
        torch = log_fids(run_gate(f"torch/{seed}", seeds=[seed], backends=["torch"], methods=methods[:1]))
        jax = {j.label: np.log(j.run[0].fid) for j in clean[seed].values()}
        rounding += [abs(values[seed] - jax[label.replace("torch", "jax")]) for label, values in torch.items()]
    return [*lines, f"The same seeds on PyTorch differ from JAX by at most {max(rounding):.3f} in log FID.", ""]


def deviation(values: Iterable[float]) -> str:
    return f"{np.std(list(values), ddof=1):.3f}"


def main() -> None:
    """Run everything, and write the page."""
    clean = {seed: judge(run_gate(f"clean/{seed}", seeds=[seed])) for seed in CLEAN_SEEDS}
    alarmed = sum(any(f.verdict == "regression" for f in judgements.values()) for judgements in clean.values())
    accepted = load_reference(REFERENCE).history[-1]
    page = [
        "# What the gate sees",
        "",
        f"By `python -m tests.gate.measure`, against the reference of commit {accepted.git_commit}",
        f"({accepted.date}, {len(accepted.seeds)} seeds).",
        "Shifts and limits are of the natural logarithm of FID; each run is of one seed, with a teacher of its own.",
        "",
        "## Planted faults, in the alternating student",
        "",
        *faults(clean),
        f"## {len(clean)} clean runs of other seeds: {alarmed} false alarms",
        "",
        *clean_runs(clean),
        "## What varies",
        "",
        *variation(clean),
    ]
    write_atomic(REFERENCE / "faults.md", "\n".join(page))


if __name__ == "__main__":
    main()
