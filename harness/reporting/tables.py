"""The main table: exact as CSV, and laid out like table 1 of the paper as Markdown, LaTeX and HTML.

Rows of one identity form a block. The best value of each NFE group is bold, among rows of one identity and one
reporting convention alone; blocks are never ranked against each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from harness.files import write_atomic
from harness.reporting.records import COLUMNS, Record, flatten, frame, load_records, over_seeds

DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Metric:
    """A column of the rendered table; `scale` multiplies what is shown, `best` is min, max or empty (not ranked)."""

    key: str
    header: str
    best: str = ""
    decimals: int = 2
    scale: float = 1.0


METRIC_COLUMNS = [
    Metric("fid", "FID-{n} ↓", "min"),
    Metric("is", "IS ↑", "max"),
    Metric("kid", f"KID-{{n}} {TIMES}10³ ↓", "min", scale=1e3),
    Metric("precision", "Precision ↑", "max", decimals=3),
    Metric("recall", "Recall ↑", "max", decimals=3),
    Metric("fid_heldout", "FID-{n} held-out ↓", "min"),
    Metric("nn_distance", "NN distance", decimals=3),
]
LEAD_COLUMNS = ["Method", "Backend", "# params", "NFE"]


@dataclass(frozen=True)
class Cell:
    """A rendered value."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Block:
    """Rows that may be ranked together: `groups` holds one list of rows for each NFE."""

    caption: str
    note: str
    header: list[str]
    groups: list[list[list[Cell]]]


def main_table(records: Sequence[Record]) -> pd.DataFrame:
    """The columns of main.csv, one line a record, in the records' order; nulls are NaN or NA."""
    return frame(records)[COLUMNS]


def write_tables(paths: Sequence[Path | str], folder: Path | str) -> None:
    """Write main.csv, main.md, main.tex and main.html of the records at `paths` into an existing folder.

    Raises UserError for a record that cannot be read and for a folder that cannot be written.
    """
    records = load_records(paths)
    blocks = layout(records)
    folder = Path(folder)
    write_atomic(folder / "main.csv", main_table(records).to_csv(index=False, lineterminator="\n"))
    write_atomic(folder / "main.md", markdown(blocks))
    write_atomic(folder / "main.tex", latex(blocks))
    write_atomic(folder / "main.html", templates().get_template("main.html.jinja").render(blocks=blocks))


def templates() -> jinja2.Environment:
    """The HTML templates of this package, escaping what they are given."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


def layout(records: Sequence[Record]) -> list[Block]:
    """One block for each identity, its rows ordered by NFE, its values formatted and its best ones marked."""
    means = over_seeds(frame(records))
    identities = {record.row.identity: flatten(record.identity) for record in records}
    blocks = [group for _, group in means.groupby(["profile", "identity", "n_samples"], sort=False)]
    return [_block(group, identities, len(blocks) > 1) for group in blocks]


def _block(rows: pd.DataFrame, identities: dict[str, dict[str, str]], several: bool) -> Block:
    order = {label: place for place, label in enumerate(dict.fromkeys(rows["label"]))}
    rows = rows.assign(place=rows["label"].map(order))
    rows = rows.sort_values(["nfe", "place"], kind="stable").reset_index(drop=True)
    columns = [metric for metric in METRIC_COLUMNS if rows[metric.key].notna().any()]
    rendered = {metric.key: _cells(rows, metric) for metric in columns}
    lines = [
        [
            Cell(row["label"]),
            Cell(row["backend"].replace("-", DASH)),
            Cell(_count(row["params"])),
            Cell(str(row["nfe"] or DASH)),
        ]
        + [rendered[metric.key][i] for metric in columns]
        for i, row in enumerate(rows.to_dict("records"))
    ]
    groups = [[lines[i] for i in indices] for indices in rows.groupby("nfe", sort=True).indices.values()]
    n = int(rows["n_samples"].iloc[0])
    header = LEAD_COLUMNS + [metric.header.format(n=_count(n)) for metric in columns]
    return Block(_caption(rows, identities, n), _note(rows, identities) if several else "", header, groups)


def _cells(rows: pd.DataFrame, metric: Metric) -> list[Cell]:
    values, sds = rows[metric.key] * metric.scale, rows[f"{metric.key}_sd"] * metric.scale
    positive = values[values > 0]
    # Enough decimals that the smallest value keeps two digits; the same number in the whole column.
    needed = 1 - math.floor(math.log10(positive.min())) if len(positive) else 0
    decimals = min(max(metric.decimals, needed), 5)
    texts = [DASH if math.isnan(value) else f"{value:.{decimals}f}" for value in values]
    bold = [False] * len(texts)
    if metric.best:
        for indices in rows.groupby(["nfe", "convention", "backend"]).indices.values():
            candidates = [i for i in indices if not math.isnan(values[i])]
            if len(candidates) > 1:
                best = texts[(min if metric.best == "min" else max)(candidates, key=values.__getitem__)]
                for i in candidates:
                    bold[i] = texts[i] == best  # what reads as equal is marked as equal
    spread = ["" if math.isnan(sd) else f" ± {sd:.{decimals}f}" for sd in sds]
    return [Cell(*cell) for cell in zip((a + b for a, b in zip(texts, spread, strict=True)), bold, strict=True)]


def _count(value: Any) -> str:
    """A count with three digits: 10k, 152k, 1.5M; a dash for none."""
    if pd.isna(value) or not value:
        return DASH
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return str(value)


def _caption(rows: pd.DataFrame, identities: dict[str, dict[str, str]], n: int) -> str:
    identity = str(rows["identity"].iloc[0])
    parts = [f"{key} {value}" for key, value in identities[identity].items() if key.startswith("extractor")]
    seeds = "; mean ± standard deviation over seeds where there are several" if (rows["seeds"] > 1).any() else ""
    return (
        f"Profile {rows['profile'].iloc[0]}: {n:,} samples a row; {', '.join(parts) or 'extractor not named'}; "
        f"identity {identity[:12]}; reporting convention: {', '.join(sorted(set(rows['convention'])))}{seeds}. "
        "Bold: the best of each NFE group on one backend, among rows of this identity and one convention. "
        "KID is unbiased, so values about zero may be negative. "
        "NN distance: mean Euclidean distance from a sample to its nearest training image, pixels in [-1, 1]."
    )


def _note(rows: pd.DataFrame, identities: dict[str, dict[str, str]]) -> str:
    own = identities[str(rows["identity"].iloc[0])]
    others = [identity for identity in identities.values() if identity is not own]
    differing = [f"{key} {value}" for key, value in own.items() if any(other.get(key) != value for other in others)]
    told = f" (here: {', '.join(differing)})" if differing else ""
    return f"Measured differently from the other blocks{told}: not to be compared with them."


def markdown(blocks: Sequence[Block]) -> str:
    """Blocks as GitHub tables, each with its caption below."""
    lines = []
    for block in blocks:
        lines += [f"> {_md(block.note)}", ""] if block.note else []
        lines += ["| " + " | ".join(_md(name) for name in block.header) + " |"]
        lines += ["|" + "|".join(" --- " if i < 2 else " ---: " for i in range(len(block.header))) + "|"]
        for row in (row for group in block.groups for row in group):
            lines.append("| " + " | ".join(f"**{_md(c.text)}**" if c.bold else _md(c.text) for c in row) + " |")
        lines += ["", f"*{_md(block.caption)}*", ""]
    return "\n".join(lines)


def _md(text: str) -> str:
    return "".join(f"\\{character}" if character in "\\|*_`<[" else character for character in text)


LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    TIMES: r"$\times$",
    "³": "$^3$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    DASH: "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def _tex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def latex(blocks: Sequence[Block]) -> str:
    """Blocks as table environments; they need the packages booktabs and graphicx."""
    lines = ["% \\usepackage{booktabs,graphicx}"]
    for block in blocks:
        caption = _tex(f"{block.caption} {block.note}".strip())
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", r"\resizebox{\linewidth}{!}{%"]
        lines += [rf"\begin{{tabular}}{{ll{'r' * (len(block.header) - 2)}}}", r"\toprule"]
        lines.append(" & ".join(_tex(name) for name in block.header) + r" \\")
        for group in block.groups:
            lines.append(r"\midrule")
            for row in group:
                cells = [rf"\textbf{{{_tex(c.text)}}}" if c.bold else _tex(c.text) for c in row]
                lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""]
    return "\n".join(lines)
