"""What a row's FID is worth: its spread over training seeds, its sampling error, and its comparison with a reference.

All of it is of log FID, because FIDs differ by factors; it is shown as FIDs and their ratios. Images are never drawn
again with replacement: duplicates act as fewer images do and make FID larger.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.files import write_atomic
from harness.metrics.folds import FOLDS, jackknife_se
from harness.reporting.claims_evidence import ALTERNATING
from harness.reporting.intervals import CONFIDENCE, half_width, holm, t_interval, t_test
from harness.reporting.records import ALIKE, DASH, SETTING, Record, frame, labels, method_name, sample_count
from harness.reporting.tables import escape_markdown

SEEDS, SAMPLING = "training seeds", "sampling"
"""What an interval is over; sampling: of one seed's images, whatever other seeds would give."""

STATISTICS = [*SETTING, "seeds", "fid", "fid_low", "fid_high", "interval", "log_sd", "sampling_log_se"]
STATISTICS += ["best_seed", "best_seed_fid", "fid_infinity"]
COMPARISONS = [*ALIKE, "convention", "backend", "steps", "method", "variant", "sampler", "reference", "seeds", "ratio"]
COMPARISONS += ["ratio_low", "ratio_high", "interval", "p", "comparisons", "p_holm", "verdict"]

ONE_TEACHER = "Where a profile repeats a student, its seeds share the first teacher: intervals omit its variation. "
STATISTICS_NOTE = (
    f"FID: geometric mean over training seeds, with its {CONFIDENCE:.0%} t-interval on log FID over seeds, or, of a "
    f"single seed, over the images alone (grouped jackknife of {FOLDS} folds), which says nothing of other seeds. log "
    "sd: standard deviation of log FID over seeds, each with noise of its own; sampling: the part of it that is the "
    "images', estimated within a seed. Best seed: the "
    "lowest FID of all seeds, a reporting convention of its own that selection favours. FID-inf: extrapolated to "
    f"infinitely many generated images, linear in 1/n. {ONE_TEACHER}Reporting convention of the other columns: "
)
COMPARISONS_NOTE = (
    "FID over that of the reference ({reference}) at as many steps on one backend, without guidance: same seeds, same "
    "noise. "
    f"Interval: {CONFIDENCE:.0%} t-interval of the paired differences of log FID over common training seeds; of one "
    f"common seed, of the paired jackknife over {FOLDS} folds of its images, which leaves the verdict on training "
    "undecided. Verdicts are by p-values that Holm's method corrects for the number of comparisons over seeds in this "
    "table, here {tests}; so one may be undecided although its own interval does not hold 1. "
    f"{ONE_TEACHER}Reporting convention: "
)


def statistics(records: Sequence[Record]) -> pd.DataFrame:
    """The columns STATISTICS, a line for each setting of trained networks, in the order of the records."""
    lines = []
    for _, rows in _by_setting(records):
        logs, errors = rows["log_fid"], rows["fid_log_se"].astype(float)
        n, mean, sampling = len(rows), float(logs.mean()), float(np.sqrt((errors**2).mean()))
        if n > 1:
            (low, high), over = t_interval(logs.to_numpy()), SEEDS
        else:
            half = half_width(sampling**2, FOLDS - 1)
            low, high, over = mean - half, mean + half, "" if np.isnan(half) else SAMPLING
        best = rows.to_dict("records")[int(np.argmin(logs))]
        line = {name: rows[name].iloc[0] for name in SETTING}
        line |= {"seeds": n, "fid": np.exp(mean), "fid_low": np.exp(low), "fid_high": np.exp(high), "interval": over}
        line |= {"log_sd": logs.std(ddof=1), "sampling_log_se": sampling}
        line |= {"best_seed": best["seed"], "best_seed_fid": best["fid"]}
        lines.append(line | {"fid_infinity": rows["fid_infinity"].astype(float).mean()})
    return pd.DataFrame(lines, columns=STATISTICS)


def comparisons(records: Sequence[Record], reference: str = ALTERNATING) -> pd.DataFrame:
    """The columns COMPARISONS: every unguided setting against the default `reference` method at as many steps.

    Settings are paired where profile, identity, convention, backend and steps agree and a training seed is common.
    """
    alike = [*ALIKE, "convention", "backend", "steps"]
    settings = [rows for _, rows in _by_setting(records) if not rows["guidance"].fillna(0).any()]
    references = {
        tuple(rows[alike].iloc[0]): rows
        for rows in settings
        if (rows["method"].iloc[0], rows["variant"].iloc[0]) == (reference, "default")
    }
    lines = []
    for rows in settings:
        other = references.get(tuple(rows[alike].iloc[0]))
        if other is None or other is rows:
            continue
        paired = rows.merge(other, on="seed", suffixes=("", "_reference"))
        if len(paired):
            line = {name: rows[name].iloc[0] for name in [*alike, "method", "variant", "sampler"]}
            lines.append(line | {"reference": reference} | _paired(paired))
    found = pd.DataFrame(lines, columns=[name for name in COMPARISONS if name not in ("comparisons", "verdict")])
    tested = found["p"].notna()
    found.loc[tested, "p_holm"] = holm(found.loc[tested, "p"].tolist())
    found["comparisons"] = int(tested.sum())
    better, decided = found["ratio"] < 1, found["p_holm"].astype(float) <= 1 - CONFIDENCE
    found["verdict"] = np.where(decided, np.where(better, "better", "worse"), "undecided")
    return found[COMPARISONS]


def _paired(paired: pd.DataFrame) -> dict[str, Any]:
    """Ratio, interval and p-value of rows with the same seeds on both sides."""
    logs = (paired["log_fid"] - paired["log_fid_reference"]).to_numpy()
    mean, n, over, p = float(logs.mean()), len(logs), SEEDS, float("nan")
    low, high = float("nan"), float("nan")
    if n > 1:
        low, high = t_interval(logs)
        p = t_test(mean, float(logs.var(ddof=1)) / n, n - 1)
    else:
        sides = [paired[name].iloc[0] for name in ("fid_folds", "fid_folds_reference")]
        over = SAMPLING if all(isinstance(side, list) and min(side) > 0 for side in sides) else ""
        if over:
            half = half_width(jackknife_se(np.log(sides[0]) - np.log(sides[1])) ** 2, FOLDS - 1)
            low, high = mean - half, mean + half
    ratios = {"ratio": np.exp(mean), "ratio_low": np.exp(low), "ratio_high": np.exp(high)}
    return {"seeds": n, **ratios, "interval": over, "p": p}


def _by_setting(records: Sequence[Record]) -> list[tuple[Any, pd.DataFrame]]:
    """Records of trained networks with a positive FID by everything but their seed, with log_fid, in their order."""
    table = frame(records)
    table = table[(table["method"] != "real-data") & (table["fid"] > 0)]
    table = table.assign(log_fid=np.log(table["fid"].astype(float)))
    return list(table.groupby(SETTING, dropna=False, sort=False))


@dataclass(frozen=True)
class View:
    """A table as a reader sees it, the first two columns text, and how to read it."""

    header: list[str]
    rows: list[list[str]]
    note: str

    def markdown(self) -> str:
        """A GitHub table with the note below."""
        lines = ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in [self.header, *self.rows]]
        rule = "|" + " --- |" * 2 + " ---: |" * (len(self.header) - 2)
        return "\n".join([lines[0], rule, *lines[1:], "", f"*{escape_markdown(self.note)}*", ""])


def statistics_view(table: pd.DataFrame) -> View:
    """The statistics as a reader sees them."""
    header = [fid_name(table), f"{CONFIDENCE:.0%} interval", "over", "Seeds", "log sd", "Sampling", "Best seed"]
    header += ["FID-inf"]
    rows = []
    for row in table.to_dict("records"):
        best = f"{row['best_seed_fid']:.4g}" if row["seeds"] > 1 else DASH
        rows.append([f"{row['fid']:.4g}", _range(row, "fid"), row["interval"] or DASH, str(row["seeds"])])
        rows[-1] += [number(row["log_sd"], 3), number(row["sampling_log_se"], 3), best, number(row["fid_infinity"], 4)]
    return view(table, header, rows, STATISTICS_NOTE)


def comparisons_view(table: pd.DataFrame) -> View:
    """The comparisons as a reader sees them."""
    header = [f"{fid_name(table)} ratio", f"{CONFIDENCE:.0%} interval", "over", "Seeds", "p", "p (Holm)", "Verdict"]
    rows = []
    for row in table.to_dict("records"):
        rows.append([f"{row['ratio']:.3f}", _range(row, "ratio"), row["interval"] or DASH, str(row["seeds"])])
        rows[-1] += [number(row["p"], 2), number(row["p_holm"], 2), row["verdict"]]
    tests = int(table["comparisons"].max()) if len(table) else 0
    reference = ", ".join(map(method_name, dict.fromkeys(table["reference"])))
    return view(table.assign(guidance=0.0), header, rows, COMPARISONS_NOTE.format(tests=tests, reference=reference))


def view(table: pd.DataFrame, header: list[str], rows: list[list[str]], note: str) -> View:
    """A view of `table`, whose rows are told apart by label, backend, steps and sample count before their own cells.

    The note ends with the reporting conventions of the table.
    """
    several = table["identity"].nunique() > 1
    lead = [
        [label, row["backend"], str(row["steps"]), f"{row['n_samples']:,}"] + [row["identity"]] * several
        for label, row in zip(labels(table), table.to_dict("records"), strict=True)
    ]
    conventions = ", ".join(dict.fromkeys(table["convention"])) or DASH
    shown = ["Method", "Backend", "k", "n"] + ["Identity"] * several + header
    return View(shown, [a + b for a, b in zip(lead, rows, strict=True)], f"{note}{conventions}.")


def fid_name(table: pd.DataFrame) -> str:
    """FID with the sample count of `table` in its name, if it has one; else the column n tells each row's."""
    counts = table["n_samples"].unique()
    return f"FID-{sample_count(int(counts[0]))}" if len(counts) == 1 else "FID"


def number(value: float, digits: int) -> str:
    """A number with so many significant digits; a dash for none."""
    return DASH if pd.isna(value) else f"{value:.{digits}g}"


def _range(row: dict[Any, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return DASH if pd.isna(low) else f"{low:.4g} to {high:.4g}"


def write_statistics(records: Sequence[Record], folder: Path) -> None:
    """Write statistics.csv, statistics.md, comparisons.csv and comparisons.md into an existing folder."""
    found, compared = statistics(records), comparisons(records)
    for name, table, shown in (
        ("statistics", found, statistics_view(found)),
        ("comparisons", compared, comparisons_view(compared)),
    ):
        write_atomic(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
        write_atomic(folder / f"{name}.md", shown.markdown())
