"""How far each planted fault moves log FID, and how far clean runs of other seeds do, against the gate's limits.

`python -m tests.gate.measure RESULTS` writes `results/reference/gate/faults.md` beside the accepted reference; RESULTS
is an existing folder for the runs, about 25 minutes of them, of which none is done twice.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from harness.cli import THREAD_VARIABLES

os.environ |= dict.fromkeys(THREAD_VARIABLES, "1") | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(sys.argv[1], "jax-cache").absolute())

from harness.config import REPOSITORY
from harness.reporting.gate import Judgement, compare, load_reference
from harness.reporting.intervals import pooled_sd
from harness.workspace import Workspace
from tests.gate.planted import FAULTS, run_missing

REFERENCE = REPOSITORY / "results/reference/gate"
CLEAN_SEEDS, FAULT_SEEDS, SHARED_SEEDS = range(100, 120), range(100, 103), range(100, 110)
STUDENT = "jax moment-matching/alternating ancestral-k8"


def workspace(folder: Path, content: dict[str, object]) -> Workspace:
    """The gate's profile with other seeds or repeats, and a folder for its results."""
    folder.mkdir(parents=True, exist_ok=True)
    profile = folder / "gate.yaml"
    profile.write_text(yaml.safe_dump({"extends": "gate", **content}))
    return Workspace(str(profile), folder)


def clean(results: Path, seed: int) -> Workspace:
    """A run of one seed as it should be."""
    space = workspace(results / "clean" / str(seed), {"seeds": [seed]})
    run_missing(space)
    return space


def faulty(results: Path, fault: str, seed: int) -> Workspace:
    """The same run with what the fault touches on JAX done anew: the alternating student, or all from the teacher on."""
    folder = results / fault.replace(" ", "-") / str(seed)
    if not folder.exists():
        shutil.copytree(clean(results, seed).root.parent, folder)
        shutil.rmtree(folder / "gate/jax" / ("" if "EMA" in fault else "moment-matching-alternating"))
    space = workspace(folder, {"seeds": [seed]})
    with FAULTS[fault]():
        run_missing(space)
    return space


def judged(space: Workspace) -> dict[str, Judgement]:
    """The gate's judgement of every row, by label."""
    return {judgement.label: judgement for judgement in compare(load_reference(REFERENCE), REFERENCE, space)}


def deviation(rows: Sequence[Sequence[float]]) -> str:
    """A pooled standard deviation and its degrees of freedom."""
    sd, freedom = pooled_sd(rows)
    return f"{sd:.3f} ({freedom} degrees of freedom)"
