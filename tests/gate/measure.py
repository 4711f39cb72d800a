"""How far each planted fault moves log FID, and how far clean runs of other seeds do, against the gate's limits.

`python -m tests.gate.measure RESULTS` writes `results/reference/gate/faults.md` beside the accepted reference; RESULTS
is an existing folder for the runs, half an hour of them on one core, of which none is done twice.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from itertools import combinations
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
from harness.reporting.gate import Judgement, compare, grouped, limit, load_reference, measured_rows
from harness.reporting.records import load_records
from harness.workspace import Workspace
from tests.gate.planted import FAULTS, TOO_SMALL, run_missing

REFERENCE = REPOSITORY / "results/reference/gate"
SEEDS = len(Workspace("gate").profile.seeds)
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


def together(*runs: dict[str, Judgement]) -> dict[str, Judgement]:
    """The judgement of one run of all their seeds."""
    accepted = grouped(load_reference(REFERENCE).rows)
    found = {}
    for label, first in runs[0].items():
        rows = [row for run in runs for row in run[label].run]
        found[label] = Judgement(first.reference, rows, limit(accepted, first.run[0].key, len(rows)))
    return found


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
    """Each fault's effect on the alternating student, against the clean runs of its seeds and against the reference."""
    rows = []
    for fault in FAULTS:
        single = [judge(run_faulty(fault, seed)) for seed in FAULT_SEEDS]
        paired = [f[STUDENT].shift - clean[seed][STUDENT].shift for seed, f in zip(FAULT_SEEDS, single, strict=True)]
        found = [together(*pair)[STUDENT] for pair in combinations(single, SEEDS)]
        caught = sum(f.verdict == "regression" for f in found)
        by = "tests/oracle" if fault in TOO_SMALL else "gate"
        shifts = ", ".join(f"{f.shift:+.2f}" for f in found)
        rows.append(
            [fault, f"{np.mean(paired):+.2f}", shifts, f"{found[0].limit:.2f}", f"{caught} of {len(found)}", by]
        )
    header = "fault | against clean runs of its seeds | against the reference | limit | caught by the gate | held by"
    return table(header, rows)


def clean_runs(clean: dict[int, dict[str, Judgement]], runs: list[dict[str, Judgement]]) -> list[str]:
    """Clean seeds, and runs of as many of them as the gate has, against the reference."""
    rows = []
    for label in runs[0]:
        own, found = [judgements[label] for judgements in clean.values()], [run[label] for run in runs]
        accepted = [np.log(row.fid) for row in found[0].reference]
        spread, most = deviation(f.shift for f in own), max(f.shift for f in found)
        alarms = sum(f.verdict == "regression" for f in found)
        fid = f"{np.exp(np.mean(accepted)):.3f}"
        rows.append([label, fid, deviation(accepted), spread, f"{most:+.2f}", f"{found[0].limit:.2f}", alarms])
    header = "row | FID | sd of log FID, reference | sd, clean seeds | largest shift | limit | false alarms"
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
    runs = [together(*pair) for pair in combinations(clean.values(), SEEDS)]
    alarmed = sum(any(f.verdict == "regression" for f in run.values()) for run in runs)
    accepted = load_reference(REFERENCE).history[-1]
    page = [
        "# What the gate sees",
        "",
        f"By `python -m tests.gate.measure`, against the reference of commit {accepted.git_commit}",
        f"({accepted.date}, {len(accepted.seeds)} seeds).",
        f"Shifts and limits are of the natural logarithm of FID; a run is of {SEEDS} seeds, as the gate's, each with a",
        "teacher of its own. Runs are all that the seeds below make.",
        "",
        "## Planted faults, in the alternating student",
        "",
        *faults(clean),
        f"## {len(clean)} clean seeds other than the reference's, {len(runs)} runs: {alarmed} false alarms",
        "",
        *clean_runs(clean, runs),
        "## What varies",
        "",
        *variation(clean),
    ]
    write_atomic(REFERENCE / "faults.md", "\n".join(page))


if __name__ == "__main__":
    main()
