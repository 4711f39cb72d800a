"""The main table: exact as CSV, and laid out like tables 1 and 3 of the paper as Markdown, LaTeX and HTML.

Rows of one identity form a block, and its ablations another one beside the rows that they vary. The best value of each
NFE group is bold, among rows of one block, backend and reporting convention alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from harness.files import write_atomic
from harness.reporting.naming import frechet
from harness.reporting.records import (
    ALIKE,
    CAPTION_COLUMNS,
    COLUMNS,
    DASH,
    Record,
    count,
    flatten,
    frame,
    is_ablation,
    load_records,
    matched_guidance,
    over_seeds,
    sample_count,
    text_to_image,
)

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
    Metric("fid", "{frechet}-{n} ↓", "min"),
    Metric("is", "IS-{n} ↑", "max"),
    Metric("kid", f"KID-{{n}} {TIMES}10³ ↓", "min", scale=1e3),
    Metric("precision", "Precision-{n} ↑", "max", decimals=3),
    Metric("recall", "Recall-{n} ↑", "max", decimals=3),
    Metric("clip", "CLIP score-{n} ↑", "max", decimals=1),
    Metric("attribute_accuracy", "Attributes-{n} ↑", "max", decimals=3),
    Metric("fid_heldout", "{frechet}-{n} held-out ↓", "min"),
    Metric("nn_distance", "NN distance", decimals=3),
]
GUIDANCE = "Guidance"
COST_COLUMNS = {"updates": "Updates", "train_passes": "Training passes", "peak_memory_mb": "Peak memory, MB"}


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
    table = frame(records)[COLUMNS]
    return table.drop(columns=[name for name in CAPTION_COLUMNS if table[name].isna().all()])


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
    """One block for each identity and one for its ablations, rows by NFE, values formatted, the best ones marked."""
    means = over_seeds(frame(records))
    identities = {record.row.identity: flatten(record.identity) for record in records}
    alike = [group for _, group in means.groupby(ALIKE, sort=False)]
    return [
        _block(rows, identities, several=len(alike) > 1, title=title)
        for group in alike
        for title, rows in (("", group[~is_ablation(group)]), ("Ablations. ", _ablations(group)))
        if len(rows)
    ]


def _ablations(rows: pd.DataFrame) -> pd.DataFrame:
    """Variants and guided samples, each with the default rows of its method, backend and step count.

    With captions the default rows have the variant's guidance as well.
    """
    varied = is_ablation(rows)
    key = ["method", "backend", "steps", "matched"]
    rows = rows.assign(matched=matched_guidance(rows))
    beside = rows[key].apply(tuple, axis=1).isin(rows.loc[varied, key].apply(tuple, axis=1))
    return rows[beside]


def _block(rows: pd.DataFrame, identities: dict[str, dict[str, str]], *, several: bool, title: str) -> Block:
    order = {label: place for place, label in enumerate(dict.fromkeys(rows["label"]))}
    rows = rows.assign(place=rows["label"].map(order))
    rows = rows.sort_values(["nfe", "place"], kind="stable").reset_index(drop=True)
    captioned = bool(text_to_image(rows).any())
    columns = [metric for metric in METRIC_COLUMNS if rows[metric.key].notna().any()]
    if captioned:  # FID, what captions are judged by, and the rest
        columns.sort(key=lambda metric: (metric.key != "fid") + (metric.key not in ("fid", *CAPTION_COLUMNS)))
    n = int(rows["n_samples"].iloc[0])
    rendered = {
        "Method": [Cell(label) for label in rows["label"]],
        "Backend": [Cell(backend.replace("-", DASH)) for backend in rows["backend"]],
    }
    rendered |= {GUIDANCE: [Cell(weight(value)) for value in rows["guidance"]]} if captioned else {}
    rendered |= {
        "# params": [Cell(count(value)) for value in rows["params"]],
        "NFE": [Cell(str(nfe or DASH)) for nfe in rows["nfe"]],
    }
    if (rows["seeds"] > 1).any():
        rendered["Seeds"] = [
            Cell(str(seeds) if backend != "-" else DASH)
            for seeds, backend in zip(rows["seeds"], rows["backend"], strict=True)
        ]
    name = {"n": sample_count(n), "frechet": frechet(identities[rows["identity"].iloc[0]].get("extractor", ""))}
    rendered |= {metric.header.format(**name): _cells(rows, metric) for metric in columns}
    rendered |= {header: [Cell(count(value)) for value in rows[key]] for key, header in COST_COLUMNS.items()}
    lines = [list(line) for line in zip(*rendered.values(), strict=True)]
    groups = [[lines[i] for i in indices] for indices in rows.groupby("nfe", sort=True).indices.values()]
    caption = title + _caption(rows, identities, n)
    if captioned:
        caption += _caption_of_captions(rows, identities[str(rows["identity"].iloc[0])])
    return Block(caption, _note(rows, identities) if several else "", list(rendered), groups)


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


def _caption(rows: pd.DataFrame, identities: dict[str, dict[str, str]], n: int) -> str:
    identity = str(rows["identity"].iloc[0])
    parts = [f"{key} {value}" for key, value in identities[identity].items() if key.startswith("extractor")]
    most = int(rows["seeds"].max())
    seeds = f"; mean ± standard deviation over training seeds where there are several (at most {most})"
    conventions = ", ".join(sorted(set(rows["convention"]))) + (seeds if most > 1 else "")
    return (
        f"Profile {rows['profile'].iloc[0]}: {n:,} samples a row; {', '.join(parts) or 'extractor not named'}; "
        f"identity {identity[:12]}; reporting convention: {conventions}. "
        "Bold: the best of each NFE group on one backend, among rows of this identity and one convention. "
        "KID is unbiased, so values about zero may be negative. "
        "NN distance: mean Euclidean distance from a sample to its nearest training image, pixels in [-1, 1]. "
        "Updates, passes (of one image through a network; a backward pass counts two, and pairs that the teacher made "
        "count) and peak memory are those of training, of all stages of a chain of students."
    )


def _caption_of_captions(rows: pd.DataFrame, identity: dict[str, str]) -> str:
    """What text-to-image columns mean, and what the images were drawn for."""
    parts = [
        " Guidance: the weight w of g_c + w (g_c - g_u), 0 for none: of a teacher's own sampling, whose steps then "
        "cost two evaluations each, or of the teacher that a student was distilled from; bold is the best whatever the "
        "weight."
    ]
    if rows["clip"].notna().any():
        model = f", by {identity['clip_extractor']}" if "clip_extractor" in identity else ""
        parts.append(f" CLIP score: 100 times the cosine between image and caption, the mean of all images{model}.")
    if rows["attribute_accuracy"].notna().any():
        parts.append(
            " Attributes: the share of the images drawn for a caption of one object in which the classifier reads "
            "everything that was asked for."
        )
    parts += [f" Drawn for {identity['label_policy']}." if "label_policy" in identity else ""]
    parts += [f" Reference of FID, KID, precision and recall: {identity['data']}." if "data" in identity else ""]
    return "".join(parts)


def weight(value: float) -> str:
    """A guidance weight; a dash for none that applies."""
    return DASH if pd.isna(value) else f"{value:g}"


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
        lines += [f"> {escape_markdown(block.note)}", ""] if block.note else []
        lines += ["| " + " | ".join(escape_markdown(name) for name in block.header) + " |"]
        lines += ["|" + "|".join(" --- " if i < 2 else " ---: " for i in range(len(block.header))) + "|"]
        for row in (row for group in block.groups for row in group):
            cells = [f"**{escape_markdown(c.text)}**" if c.bold else escape_markdown(c.text) for c in row]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", f"*{escape_markdown(block.caption)}*", ""]
    return "\n".join(lines)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, also in a table."""
    return "".join(f"\\{character}" if character in "\\|*_`<[~" else character for character in text)


LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    TIMES: r"$\times$",
    "³": "$^3$",
    "†": r"$\dagger$",
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
