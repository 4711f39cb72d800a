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
from harness.reporting.records import (
    ALIKE,
    DASH,
    SETTING,
    Record,
    frame,
    labels,
    matched_guidance,
    method_name,
    sample_count,
    text_to_image,
)
from harness.reporting.tables import GUIDANCE, escape_markdown, weight

SEEDS, SAMPLING = "training seeds", "sampling"
"""What an interval is over; sampling: of one seed's images, whatever other seeds would give."""

STATISTICS = [*SETTING, "seeds", "fid", "fid_low", "fid_high", "interval", "log_sd", "sampling_log_se"]
STATISTICS += ["best_seed", "best_seed_fid", "fid_infinity"]
CLIP_STATISTICS = ["clip", "clip_low", "clip_high", "clip_interval"]
"""After STATISTICS where images were scored against captions."""
COMPARISONS = [*ALIKE, "convention", "backend", "steps", "method", "variant", "sampler", "reference", "seeds", "ratio"]
COMPARISONS += ["ratio_low", "ratio_high", "interval", "p", "comparisons", "p_holm", "verdict"]
CLIP_COMPARISONS = [*COMPARISONS[:6], "guidance", *COMPARISONS[6:], "clip_difference", "clip_low", "clip_high"]
"""In place of COMPARISONS where images were scored against captions."""

ONE_TEACHER = "Where a profile repeats a student, its seeds share the first teacher: intervals omit its variation. "
STATISTICS_NOTE = (
    f"FID: geometric mean over training seeds, with its {CONFIDENCE:.0%} t-interval on log FID over seeds, or, of a "
    f"single seed, over the images alone (grouped jackknife of {FOLDS} folds), which says nothing of other seeds. log "
    "sd: standard deviation of log FID over seeds, each with noise of its own; sampling: the part of it that is the "
    "images', estimated within a seed. Best seed: the "
    "lowest FID of all seeds, a reporting convention of its own that selection favours. FID-inf: extrapolated to "
    f"infinitely many generated images, linear in 1/n. {{clip}}{ONE_TEACHER}Reporting convention of the other columns: "
)
CLIP_STATISTICS_NOTE = (
    f"CLIP score: mean over training seeds, with its {CONFIDENCE:.0%} t-interval over them, or, of a single seed, over "
    "its images. "
)
COMPARISONS_NOTE = (
    "FID over that of the reference ({reference}) at as many steps on one backend, {guidance}: same seeds, same "
    "noise. "
    f"Interval: {CONFIDENCE:.0%} t-interval of the paired differences of log FID over common training seeds; of one "
    f"common seed, of the paired jackknife over {FOLDS} folds of its images, which leaves the verdict on training "
    "undecided. Verdicts are by p-values that Holm's method corrects for the number of comparisons over seeds in this "
    "table, here {tests}; so one may be undecided although its own interval does not hold 1. "
    f"{ONE_TEACHER}{{clip}}Reporting convention: "
)
CLIP_COMPARISONS_NOTE = (
    f"CLIP score: minus that of the reference, with the {CONFIDENCE:.0%} t-interval of the paired differences where "
    "several seeds are common; verdicts are on FID alone. "
)


def statistics(records: Sequence[Record]) -> pd.DataFrame:
    """The columns STATISTICS, a line for each setting of trained networks, in the order of the records.

    CLIP_STATISTICS follow where there are CLIP scores.
    """
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
        lines.append(line | {"fid_infinity": rows["fid_infinity"].astype(float).mean()} | _clip_statistics(rows))
    found = pd.DataFrame(lines, columns=STATISTICS + CLIP_STATISTICS)
    return found if found["clip"].notna().any() else found[STATISTICS]


def _clip_statistics(rows: pd.DataFrame) -> dict[str, Any]:
    """The mean CLIP score of one setting's seeds and its interval, over them or over the images of a single one."""
    scores, errors = (rows[name].astype(float).dropna().to_numpy() for name in ("clip", "clip_se"))
    mean = float(scores.mean()) if len(scores) else float("nan")
    low, high, over = float("nan"), float("nan"), ""
    if len(scores) > 1:
        (low, high), over = t_interval(scores), SEEDS
    elif len(scores) == len(errors) == 1:
        half = half_width(float(errors[0]) ** 2, int(rows["n_samples"].iloc[0]) - 1)
        low, high, over = mean - half, mean + half, SAMPLING
    return dict(zip(CLIP_STATISTICS, (mean, low, high, over), strict=True))


def comparisons(records: Sequence[Record], reference: str = ALTERNATING) -> pd.DataFrame:
    """The columns COMPARISONS: every unguided setting against the default `reference` method at as many steps.

    Settings are paired where profile, identity, convention, backend and steps agree and a training seed is common;
    where images were scored against captions, settings of every guidance, which then agrees too, in CLIP_COMPARISONS.
    """
    alike = [*ALIKE, "convention", "backend", "steps", "matched"]
    settings = [rows for _, rows in _by_setting(records) if not (rows["guided"] & ~rows["captioned"]).any()]
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
            line = {name: rows[name].iloc[0] for name in [*alike, "method", "variant", "sampler", "guidance"]}
            lines.append(line | {"reference": reference} | _paired(paired) | _clip_paired(paired))
    columns = [name for name in CLIP_COMPARISONS if name not in ("comparisons", "verdict")]
    found = pd.DataFrame(lines, columns=columns)
    tested = found["p"].notna()
    found.loc[tested, "p_holm"] = holm(found.loc[tested, "p"].tolist())
    found["comparisons"] = int(tested.sum())
    better, decided = found["ratio"] < 1, found["p_holm"].astype(float) <= 1 - CONFIDENCE
    found["verdict"] = np.where(decided, np.where(better, "better", "worse"), "undecided")
    captioned = any(rows["captioned"].any() for rows in settings)
    return found[CLIP_COMPARISONS if captioned else COMPARISONS]


def _clip_paired(paired: pd.DataFrame) -> dict[str, float]:
    """Mean difference of the CLIP scores of rows with the same seeds on both sides, and its interval over them."""
    gains = (paired["clip"].astype(float) - paired["clip_reference"].astype(float)).dropna().to_numpy()
    low, high = t_interval(gains) if len(gains) > 1 else (float("nan"), float("nan"))
    mean = float(gains.mean()) if len(gains) else float("nan")
    return {"clip_difference": mean, "clip_low": low, "clip_high": high}


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
    """Records of trained networks with a positive FID by everything but their seed, in their order.

    With the columns log_fid, captioned (`text_to_image`), guided and matched (`matched_guidance`).
    """
    table = frame(records)
    table = table.assign(captioned=text_to_image(table), matched=matched_guidance(table))
    table = table[(table["method"] != "real-data") & (table["fid"] > 0)]
    table = table.assign(log_fid=np.log(table["fid"].astype(float)), guided=table["guidance"].fillna(0) != 0)
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
    captioned = "clip" in table
    header += ["CLIP score", f"{CONFIDENCE:.0%} interval", "over"] * captioned
    rows = []
    for row in table.to_dict("records"):
        best = f"{row['best_seed_fid']:.4g}" if row["seeds"] > 1 else DASH
        rows.append([f"{row['fid']:.4g}", _range(row, "fid"), row["interval"] or DASH, str(row["seeds"])])
        rows[-1] += [number(row["log_sd"], 3), number(row["sampling_log_se"], 3), best, number(row["fid_infinity"], 4)]
        if captioned:
            rows[-1] += [number(row["clip"], 4), _range(row, "clip"), row["clip_interval"] or DASH]
    note = STATISTICS_NOTE.format(clip=CLIP_STATISTICS_NOTE * captioned)
    return view(table, header, rows, note, guided=captioned)


def comparisons_view(table: pd.DataFrame) -> View:
    """The comparisons as a reader sees them."""
    header = [f"{fid_name(table)} ratio", f"{CONFIDENCE:.0%} interval", "over", "Seeds", "p", "p (Holm)", "Verdict"]
    captioned = "guidance" in table
    header += ["CLIP difference", f"{CONFIDENCE:.0%} interval"] * captioned
    rows = []
    for row in table.to_dict("records"):
        rows.append([f"{row['ratio']:.3f}", _range(row, "ratio"), row["interval"] or DASH, str(row["seeds"])])
        rows[-1] += [number(row["p"], 2), number(row["p_holm"], 2), row["verdict"]]
        if captioned:
            gain = row["clip_difference"]
            rows[-1] += [DASH if pd.isna(gain) else f"{gain:+.2f}", _range(row, "clip", "+.2f")]
    tests = int(table["comparisons"].max()) if len(table) else 0
    reference = ", ".join(map(method_name, dict.fromkeys(table["reference"])))
    told = {"guidance": "with as much guidance", "clip": CLIP_COMPARISONS_NOTE}
    told = told if captioned else {"guidance": "without guidance", "clip": ""}
    note = COMPARISONS_NOTE.format(tests=tests, reference=reference, **told)
    return view(table if captioned else table.assign(guidance=0.0), header, rows, note, guided=captioned)


def view(table: pd.DataFrame, header: list[str], rows: list[list[str]], note: str, *, guided: bool = False) -> View:
    """A view of `table`, whose rows are told apart by label, backend, steps and sample count before their own cells.

    `guided`: and by a column for the guidance, which labels then do not name. The note ends with the reporting
    conventions of the table.
    """
    several = table["identity"].nunique() > 1
    lead = [
        [label, row["backend"], *[weight(row["guidance"])] * guided, str(row["steps"]), f"{row['n_samples']:,}"]
        + [row["identity"]] * several
        for label, row in zip(
            labels(table.assign(guidance=0.0) if guided else table), table.to_dict("records"), strict=True
        )
    ]
    conventions = ", ".join(dict.fromkeys(table["convention"])) or DASH
    shown = ["Method", "Backend", *[GUIDANCE] * guided, "k", "n"] + ["Identity"] * several + header
    return View(shown, [a + b for a, b in zip(lead, rows, strict=True)], f"{note}{conventions}.")


def fid_name(table: pd.DataFrame) -> str:
    """FID with the sample count of `table` in its name, if it has one; else the column n tells each row's."""
    counts = table["n_samples"].unique()
    return f"FID-{sample_count(int(counts[0]))}" if len(counts) == 1 else "FID"


def number(value: float, digits: int) -> str:
    """A number with so many significant digits; a dash for none."""
    return DASH if pd.isna(value) else f"{value:.{digits}g}"


def _range(row: dict[Any, Any], name: str, form: str = ".4g") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return DASH if pd.isna(low) else f"{low:{form}} to {high:{form}}"


def write_statistics(records: Sequence[Record], folder: Path) -> None:
    """Write statistics.csv, statistics.md, comparisons.csv and comparisons.md into an existing folder."""
    found, compared = statistics(records), comparisons(records)
    for name, table, shown in (
        ("statistics", found, statistics_view(found)),
        ("comparisons", compared, comparisons_view(compared)),
    ):
        write_atomic(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
        write_atomic(folder / f"{name}.md", shown.markdown())
