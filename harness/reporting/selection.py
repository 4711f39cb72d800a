"""What choosing the best of several evaluations is worth: the selected value beside the last one and a fresh one.

The records are those of `fewstep evaluate --during`. They stand in a table of their own: a value that was selected by
its metric is never ranked with one that was not.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.files import write_atomic
from harness.reporting.records import SETTING, Record, frame
from harness.reporting.statistics import View, fid_name, number, view

SELECTION = [*SETTING, "seed", "evaluations", "best_update", "updates", "fid_best", "fid_last", "fid_fresh"]
SELECTION += ["best_over_last", "best_over_fresh"]
NOTE = (
    "Evaluation during training, as papers report it: one noise and one set of labels for all evaluations of a run, "
    "whose lowest FID is the best. Last: the FID of the last weights on the same noise. Fresh: that of the selected "
    "weights on noise that had no part in the selection. Selection biases the best, and neither last nor fresh: best / "
    "last is what it gains, best / fresh the part of the gain that is chance, up to sampling error. Reporting "
    "convention of the best: "
)


def selection(records: Sequence[Record]) -> pd.DataFrame:
    """The columns SELECTION, a line for each record of the best of n evaluations."""
    found = frame(records)
    found = found.assign(evaluations=[len(of) for of in found["fid_by_update"]], fid_best=found["fid"])
    found["best_over_last"] = found["fid_best"] / found["fid_last"]
    found["best_over_fresh"] = found["fid_best"] / found["fid_fresh"]
    return found[SELECTION]


def selection_view(table: pd.DataFrame) -> View:
    """The same as a reader sees it."""
    fids = [f"{fid_name(table)}, {which}" for which in ("best", "last", "fresh")]
    header = ["Seed", "Best at update", *fids, "best / last", "best / fresh"]
    rows = [
        [str(row["seed"]), f"{row['best_update']:,} of {row['updates']:,}"]
        + [number(row[name], 4) for name in ("fid_best", "fid_last", "fid_fresh", "best_over_last", "best_over_fresh")]
        for row in table.to_dict("records")
    ]
    return view(table, header, rows, NOTE)


def write_selection(records: Sequence[Record], folder: Path) -> None:
    """Write selection.csv and selection.md into an existing folder."""
    table = selection(records)
    write_atomic(folder / "selection.csv", table.to_csv(index=False, lineterminator="\n"))
    write_atomic(folder / "selection.md", selection_view(table).markdown())
