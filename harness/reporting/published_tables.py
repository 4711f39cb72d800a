"""Published beside reproduced: what others printed, what was measured here, and whether the two agree.

Only what a table was measured with alike (`PublishedTable.differences`) stands beside it; any other profile gets the
published tables by themselves. Unverified numbers carry a dagger in every rendering.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.addresses import TEACHER
from harness.config import Profile
from harness.files import write_atomic
from harness.reporting.claims_evidence import MIN_SEEDS
from harness.reporting.intervals import CONFIDENCE, t_interval
from harness.reporting.published import METRICS, PublishedRow, PublishedTable, load_tables, tables_for
from harness.reporting.records import DASH, FIRST_METHODS, SETTING, Record, frame, load_records, sample_count
from harness.reporting.statistics import ONE_TEACHER
from harness.reporting.tables import Block, Cell, latex, markdown, templates

DAGGER = "\N{DAGGER}"
HEADERS = {"fid": "FID-{n} ↓", "is": "IS-{n} ↑", "clip": "CLIP score ↑"}
DECIMALS = {"fid": 2, "is": 2, "clip": 3}
SCALES = {"clip": 0.01}  # published CLIP scores are cosines, this project's are 100 times as large
LEGEND = f"{DAGGER}: unverified, recollected and never checked against the publication; not to be quoted as published. "
CONVENTIONAL = (
    "{n:,} samples by the convention of the field, which most sources do not state; reporting conventions as the "
    "sources say, else unknown; every source in published.csv"
)


@dataclass(frozen=True)
class Reproduction:
    """One setting's geometric mean over training seeds, and the ends of its interval (None with too few seeds)."""

    backend: str
    value: float
    low: float | None
    high: float | None
    seeds: int
    n_samples: int
    convention: str
    identity: str


@dataclass(frozen=True)
class Comparison:
    """One published value and what was reproduced of it, if anything."""

    table: str
    row: PublishedRow
    metric: str
    published: Decimal
    published_n_samples: int
    reproduced: Reproduction | None

    @property
    def difference(self) -> float | None:
        """Reproduced minus published."""
        return None if self.reproduced is None else self.reproduced.value - float(self.published)

    @property
    def within(self) -> bool | None:
        """Whether the published value lies in the reproduced interval, where there is one."""
        if self.reproduced is None or self.reproduced.low is None or self.reproduced.high is None:
            return None
        return self.reproduced.low <= float(self.published) <= self.reproduced.high


@dataclass(frozen=True)
class PublishedBlocks:
    """What is rendered: published beside reproduced, and published numbers by themselves, by title."""

    compared: list[Block] = field(default_factory=list)
    alone: dict[str, Block] = field(default_factory=dict)


def write_published(paths: Sequence[Path | str], profile: Profile, folder: Path | str) -> None:
    """Write published.csv, published.md, published.tex and published.html for the records at `paths`.

    `folder` exists. Raises UserError for records and published tables that cannot be read, a table that the profile
    names and that is not there, and a folder that cannot be written.
    """
    records, tables, folder = load_records(paths), tables_for(profile, load_tables()), Path(folder)
    blocks = published_blocks(records, profile, tables)
    every = [*blocks.compared, *blocks.alone.values()]
    text = io.StringIO()
    lines = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    lines.writeheader()
    lines.writerows(_line(item) for item in compare(records, profile, tables))
    write_atomic(folder / "published.csv", text.getvalue())
    write_atomic(folder / "published.md", markdown(every))
    write_atomic(folder / "published.tex", latex(every))
    page = templates().get_template("published.html.jinja")
    write_atomic(folder / "published.html", page.render(published=blocks, profile=profile.name))


def compare(records: Sequence[Record], profile: Profile, tables: Iterable[PublishedTable]) -> list[Comparison]:
    """Every published value of fid, is and clip, once for each setting that reproduced it, or once alone."""
    found = []
    for table in tables:
        alike = [record for record in records if not _differences(table, profile, record)]
        measured = frame(alike) if alike else None
        for row in table.rows:
            for metric in METRICS:
                if (value := row.value(metric)) is not None:
                    shared = (table.name, row, metric, value, table.protocol.n_samples)
                    reproduced = [] if measured is None else _reproductions(measured, row, metric)
                    found += [Comparison(*shared, one) for one in reproduced] or [Comparison(*shared, None)]
    return found


def _differences(table: PublishedTable, profile: Profile, record: Record) -> list[str]:
    return table.differences(profile, str(record.identity.get("extractor")), record.row.n_samples)


def _reproductions(measured: pd.DataFrame, row: PublishedRow, metric: str) -> list[Reproduction]:
    """What was measured of a row: the default variant of its method with as many evaluations and the same guidance."""
    if row.ours is None or row.nfe is None or metric not in measured:
        return []
    rows = measured[(measured["method"] == row.ours) & measured["variant"].isin(["default", "-"])]
    rows = rows[(rows["nfe"] == row.nfe) & (rows["guidance"].fillna(0) == (row.guidance or 0)) & rows[metric].notna()]
    if row.ours == TEACHER:
        rows = rows[rows["sampler"] == "ancestral"]
    found = []
    for _, seeds in rows.groupby(SETTING, dropna=False, sort=False):
        logs = np.log(seeds[metric].to_numpy(float) * SCALES.get(metric, 1.0))
        low, high = np.exp(t_interval(logs)).tolist() if len(logs) >= MIN_SEEDS else (None, None)
        said = {name: seeds[name].iloc[0] for name in ("backend", "n_samples", "convention", "identity")}
        found.append(Reproduction(value=float(np.exp(logs.mean())), low=low, high=high, seeds=len(logs), **said))
    return found


def _line(item: Comparison) -> dict[str, object]:
    """A line of published.csv."""
    row = item.row.model_dump(include=set(ROW_COLUMNS), by_alias=True)
    ours = asdict(item.reproduced) if item.reproduced else {}
    within = {None: None, True: "yes", False: "no"}[item.within]
    return {
        "table": item.table,
        **row,
        "metric": item.metric,
        "published": item.published,
        "published_n_samples": item.published_n_samples,
        "published_convention": item.row.convention,
        **{column: ours.get(name) for name, column in REPRODUCED.items()},
        "difference": item.difference,
        "within": within,
    }


ROW_COLUMNS = ["method", "variant", "ours", "params", "nfe", "guidance", "verified", "paper", "year", "source"]
REPRODUCED = {item.name: "reproduced" if item.name == "value" else item.name for item in fields(Reproduction)}
CSV_COLUMNS = ["table", *ROW_COLUMNS, "metric", "published", "published_n_samples", "published_convention"]
CSV_COLUMNS += [*REPRODUCED.values(), "difference", "within"]


def published_blocks(records: Sequence[Record], profile: Profile, tables: Iterable[PublishedTable]) -> PublishedBlocks:
    """The tables as blocks: a comparison for each metric where anything may be compared, the rest by itself."""
    blocks = PublishedBlocks()
    for table in tables:
        title = table.protocol.title[:1].upper() + table.protocol.title[1:]
        alike = [record for record in records if not _differences(table, profile, record)]
        rows = [row for row in table.rows if any(row.value(metric) is not None for metric in METRICS)]
        note = f"Numbers of other people, not measured here: {_why_apart(table, profile, records)}"
        if alike:
            items = [item for item in compare(alike, profile, [table]) if item.row.ours is not None]
            for metric in METRICS:
                if chosen := [item for item in items if item.metric == metric]:
                    blocks.compared.append(_comparison(chosen, metric, title, alike))
            rows = [row for row in rows if row.ours is None]
            note = "Numbers of other people, of methods or settings that this project does not have."
        for within, kind in (("yes", "the paper's own table"), ("no", "further results")):
            if chosen_rows := [row for row in rows if row.table_in_paper == within]:
                blocks.alone[f"{title}: {kind}"] = _alone(chosen_rows, table, f"{title}: {kind}", note)
    return blocks


def _why_apart(table: PublishedTable, profile: Profile, records: Sequence[Record]) -> str:
    differing = dict.fromkeys(reason for record in records for reason in _differences(table, profile, record))
    return f"not comparable with the results of profile {profile.name} ({'; '.join(differing)})."


def _comparison(items: Sequence[Comparison], metric: str, title: str, records: Sequence[Record]) -> Block:
    name = HEADERS[metric].format(n=sample_count(items[0].published_n_samples))
    decimals = DECIMALS[metric]
    header = ["Method", "Variant", "NFE", f"{name} published", f"{name} reproduced", "Difference"]
    header += [f"{CONFIDENCE:.0%} interval", "In interval", "Backend, seeds", "Conventions"]
    several = len({item.reproduced.identity for item in items if item.reproduced}) > 1
    groups: dict[str | None, list[list[Cell]]] = {}
    for item in sorted(items, key=_order):
        row, ours, mark = item.row, item.reproduced, _mark(item.row)
        variant = [row.variant, f"w = {row.guidance:g}" if row.guidance else None]
        texts = [f"{row.method}{mark}", ", ".join(filter(None, variant)), str(row.nfe or DASH)]
        texts.append(f"{item.published}{mark}")
        if ours is None:
            texts += [DASH] * 5 + [f"{row.convention} / {DASH}"]
        else:
            interval = DASH if ours.low is None else f"{ours.low:.{decimals}f} to {ours.high:.{decimals}f}"
            verdict = {None: DASH, True: f"yes{mark}", False: f"no{mark}"}[item.within]
            backend = f"{ours.backend} ({ours.identity[:8]})" if several else ours.backend
            texts += [f"{ours.value:.{decimals}f}", f"{item.difference:+.{decimals}f}{mark}", interval, verdict]
            texts += [f"{backend}, {ours.seeds}", f"{row.convention} / {ours.convention}"]
        groups.setdefault(row.ours, []).append([Cell(text) for text in texts])
    return Block(_compared_caption(items, title, records), "", header, list(groups.values()))


def _order(item: Comparison) -> tuple[int, int]:
    """The method's place in the main table, then the number of evaluations; otherwise as published."""
    first = FIRST_METHODS.index(str(item.row.ours)) if item.row.ours in FIRST_METHODS else len(FIRST_METHODS)
    return first, item.row.nfe or 0


def _mark(row: PublishedRow) -> str:
    return "" if row.verified == "yes" else DAGGER


def _compared_caption(items: Sequence[Comparison], title: str, records: Sequence[Record]) -> str:
    identities = {record.row.identity: record.identity for record in records}
    measured = ", ".join(
        f"{identity[:12]} (" + ", ".join(_measured_with(tree)) + ")" for identity, tree in identities.items()
    )
    legend = LEGEND if any(item.row.verified == "no" for item in items) else ""
    return (
        f"{title}, published beside reproduced. Published: "
        f"{CONVENTIONAL.format(n=items[0].published_n_samples)}. Reproduced: profile {records[0].row.profile}, "
        f"{records[0].row.n_samples:,} samples a row; identity {measured}; geometric mean over training seeds, "
        f"with a t-interval over them of the logarithm where there are {MIN_SEEDS} or more. {ONE_TEACHER}Reference of "
        f"the reproduced values: as said; of the published ones, by convention, the whole training set. A published "
        f"value without a guidance weight is compared with what was sampled without guidance. Difference: reproduced "
        f"minus published. In interval: whether the published value, as printed, lies in it. Conventions: of the "
        f"published value / of the reproduced one; where they differ, so does what is compared. "
        f"{legend}{DASH}: nothing was reproduced."
    )


def _measured_with(identity: dict[str, Any]) -> list[str]:
    """Extractor, resize and reference images of an identity, where it names them."""
    said = [f"{key} {identity[key]}" for key in ("extractor", "resize") if key in identity]
    if "n_images" in identity:
        said.append(f"reference: {identity['n_images']:,} images of {identity['data']}")
    return said


def _alone(rows: Sequence[PublishedRow], table: PublishedTable, title: str, note: str) -> Block:
    metrics = [metric for metric in METRICS if any(row.value(metric) is not None for row in rows)]
    n = table.protocol.n_samples
    header = ["Method", "Variant", "# params", "NFE", "Guidance"]
    header += [*(HEADERS[metric].format(n=sample_count(n)) for metric in metrics), "Convention", "Published in"]
    lines = []
    for row in rows:
        mark = _mark(row)
        values = [row.value(metric) for metric in metrics]
        weight = DASH if row.guidance is None else f"{row.guidance:g}"
        texts = [f"{row.method}{mark}", row.variant or "", row.params or DASH, str(row.nfe or DASH), weight]
        texts += [DASH if value is None else f"{value}{mark}" for value in values]
        lines.append([Cell(text) for text in [*texts, row.convention, f"{row.paper} {row.year}"]])
    legend = LEGEND if any(row.verified == "no" for row in rows) else ""
    caption = (
        f"{title}. Published by others, not measured here: {CONVENTIONAL.format(n=n)}. NFE and guidance as the "
        f"sources count them. {legend}{DASH}: unknown."
    )
    return Block(caption, note, header, [lines])
