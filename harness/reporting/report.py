"""The report: one HTML file that needs nothing beside it. Figures are embedded, tables and styles are inline."""

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config import Profile
from harness.errors import UserError
from harness.files import write_atomic
from harness.reporting.caption_tiles import caption_tiles
from harness.reporting.claims import note, read_claims
from harness.reporting.claims_evidence import Verdict
from harness.reporting.figures import CAPTIONS
from harness.reporting.published import load_tables, tables_for
from harness.reporting.published_tables import published_blocks
from harness.reporting.records import (
    ALIKE,
    DASH,
    Record,
    flatten,
    frame,
    is_ablation,
    load_records,
    matched_guidance,
    method_name,
    over_seeds,
    plain_teachers,
    sample_count,
    text_to_image,
)
from harness.reporting.selection import selection, selection_view
from harness.reporting.statistics import comparisons, comparisons_view, statistics, statistics_view
from harness.reporting.tables import GUIDANCE, TIMES, layout, templates, weight

DETAILS = ("samples-", "training-")  # figures of one method each, folded away
RETRIEVED = "of the held-out images find their caption among those of 32, by the CLIP that scores them"
MANY = 4  # more different values than these are counted, not listed


def write_report(
    paths: Sequence[Path | str],
    figures: Path | str,
    path: Path | str,
    extractor: Path | None = None,
    claims: Path | None = None,
    profile: Profile | None = None,
    selected: Sequence[Path | str] = (),
    clip: Path | None = None,
) -> None:
    """Write the report of the records at `paths` and of the folder that `write_figures` filled to the file `path`.

    `extractor` is the JSON file of the validated extractor, whose held-out accuracy is shown where it is given;
    `clip` likewise that of the CLIP, whose held-out retrieval is shown; `claims` is claims.csv; with the `profile`,
    published numbers stand beside its results or below them; `selected` are the records of the best of n evaluations.
    Raises UserError for a record, figure, published table, report or file of claims that cannot be read and for a file
    that cannot be written.
    """
    records = load_records(paths)
    table = frame(records)
    means = over_seeds(table)
    captioned = bool(text_to_image(table).any())
    policies = [record.identity.get("label_policy") for record in records]
    page = templates().get_template("report.html.jinja")
    drawn = _embedded(Path(figures))
    judged = read_claims(claims) if claims else []
    content = page.render(
        claims=judged,
        verdicts=[(verdict.value, sum(claim.verdict == verdict for claim in judged)) for verdict in Verdict],
        claims_note=note(judged),
        captioned=captioned,
        prompts=" and ".join(dict.fromkeys(policy for policy in policies if policy)),
        profiles=", ".join(dict.fromkeys(table["profile"])),
        fid=" and ".join(f"FID-{sample_count(n)}" for n in dict.fromkeys(table["n_samples"])),
        backends=", ".join(name for name in dict.fromkeys(table["backend"]) if name != "-"),
        records=len(records),
        tiles=_tiles(means) + (caption_tiles(means) if captioned else []) + _accuracy(extractor) + _retrieval(clip),
        ratios=_by_steps(teacher_ratios(means), "ratio", "{:.2f}".format),
        blocks=layout(records),
        published=published_blocks(records, profile, tables_for(profile, load_tables())) if profile else None,
        statistics=statistics_view(statistics(records)),
        comparisons=comparisons_view(comparisons(records)),
        selection=selection_view(selection(load_records(selected))) if selected else None,
        figures=[figure for figure in drawn if not figure["file"].startswith(DETAILS)],
        details=[figure for figure in drawn if figure["file"].startswith(DETAILS)],
        cost=_cost(records, captioned=captioned),
        throughput=_by_steps(means[means["method"] != "real-data"], "images_per_second", _number),
        provenance=_provenance(records),
        identities=_identities(records),
    )
    write_atomic(path, content)


def _embedded(folder: Path) -> list[dict[str, str]]:
    try:
        figures = json.loads((folder / CAPTIONS).read_text()).values()
        return [
            figure | {"data": base64.b64encode((folder / figure["file"]).read_bytes()).decode()} for figure in figures
        ]
    except OSError as error:
        raise UserError(
            f"{error.filename}: the figure cannot be read ({error.strerror}); draw the figures first"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{folder / CAPTIONS}: is garbled; draw the figures again") from None


def teacher_ratios(means: pd.DataFrame) -> pd.DataFrame:
    """FID of each student over that of its teacher's ancestral sampling at the same step count, as column `ratio`.

    Both share profile, identity, sample count, convention and backend, and of text-to-image rows the guidance; a
    student without such a teacher is left out.
    """
    alike = [*ALIKE, "convention", "backend", "steps", "matched"]
    means = means.assign(matched=matched_guidance(means))
    students = means[~means["method"].isin(["teacher", "real-data"])]
    merged = students.merge(plain_teachers(means), on=alike, suffixes=("", "_teacher"), validate="many_to_one")
    return merged.assign(ratio=merged["fid"] / merged["fid_teacher"])


def teacher_over_floor(means: pd.DataFrame) -> pd.DataFrame:
    """FID of each backend's teacher with its most ancestral steps over the real-data floor, as column `ratio`.

    Of several guidance weights, the one with the lowest FID.
    """
    teachers = plain_teachers(means).sort_values("fid", ascending=False, kind="stable")
    most = teachers.sort_values("steps", kind="stable").groupby([*ALIKE, "backend"], sort=False).tail(1)
    merged = most.merge(means[means["method"] == "real-data"], on=ALIKE, suffixes=("", "_floor"))
    return merged.assign(ratio=merged["fid"] / merged["fid_floor"])


def _tiles(means: pd.DataFrame) -> list[dict[str, str]]:
    floors, captioned = means[means["method"] == "real-data"], bool(text_to_image(means).any())
    tiles = [
        {"value": f"{row.fid:.3g}", "name": f"FID-{sample_count(row.n_samples)} of real data (floor)"}
        for row in floors.itertuples()
    ]
    for row in teacher_over_floor(means).sort_values("backend", ascending=False).itertuples():
        of = f"{row.steps} steps" + (f" and w = {row.guidance:g}" if captioned else "")
        name = f"teacher with {of}, FID-{sample_count(row.n_samples)} over the floor ({row.backend})"
        tiles.append({"value": f"{row.ratio:.2f}{TIMES}", "name": name})
    ratios = teacher_ratios(means[~is_ablation(means)])
    for _, alike in ratios.groupby([*ALIKE, "convention"], sort=False):  # what is not alike has no common lowest
        best = alike.sort_values("ratio").to_dict("records")[0]
        which = f"{best['series']}, k = {best['steps']}, {best['backend']}"
        fid = f"FID-{sample_count(best['n_samples'])}"
        name = f"lowest of {len(alike)} students, {fid} over its teacher's ({which})"
        tiles.append({"value": f"{best['ratio']:.2f}{TIMES}", "name": name})
    return tiles


def _accuracy(extractor: Path | None) -> list[dict[str, str]]:
    if extractor is None:
        return []
    try:
        report = json.loads(extractor.read_text())
        if "resize" in report:  # published weights, whose hash says all
            return []
        accuracy = float(report["accuracy_heldout"])
    except (OSError, ValueError, KeyError):
        raise UserError(f"{extractor}: missing or garbled; validate the extractor with fewstep extractor") from None
    return [{"value": f"{accuracy:.1%}", "name": "of the held-out images are classified correctly by the extractor"}]


def _retrieval(clip: Path | None) -> list[dict[str, str]]:
    if clip is None:
        return []
    try:
        report = json.loads(clip.read_text())
        share = report.get("retrieval_heldout")
        return [] if share is None else [{"value": f"{float(share):.1%}", "name": RETRIEVED}]
    except (OSError, ValueError, AttributeError, TypeError):
        raise UserError(f"{clip}: missing or garbled; validate the CLIP with fewstep extractor --clip") from None


def _cost(records: Sequence[Record], *, captioned: bool) -> dict[str, list[Any]]:
    header = ["Method", "Network", "Backend", *[GUIDANCE] * captioned, "Seed", "Updates", "Passes", "Training, s"]
    header += ["Peak memory, MB"]
    rows: dict[tuple[str, ...], None] = {}
    for record in records:
        row = record.row
        if row.method != "real-data":
            name = method_name(row.method) + ("" if row.variant == "default" else f" [{row.variant}]")
            numbers = (row.seed, row.updates, row.train_passes, row.train_seconds, row.peak_memory_mb)
            guidance = row.guidance if row.method != "teacher" else None  # it is sampled with guidance, not trained
            guided = [DASH if guidance is None else weight(guidance)] * captioned
            rows[(name, record.student, row.backend, *guided, *map(_number, numbers))] = None
    return {"header": header, "rows": [list(row) for row in rows]}


def _by_steps(table: pd.DataFrame, column: str, form: Callable[[float], str]) -> dict[str, list[Any]]:
    """A table of one column: rows are methods on a backend, with captions each guidance; columns are step counts."""
    captioned = bool(text_to_image(table).any())
    several = table["identity"].nunique() > 1
    steps = sorted(set(table["steps"]))
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for row in table[table[column].notna()].to_dict("records"):
        name = f"{row['label']} (identity {row['identity'][:8]})" if several else row["label"]
        key = (name, row["backend"], *[weight(row["guidance"])] * captioned)
        rows.setdefault(key, {})[row["steps"]] = form(row[column])
    lines = [[*key, *(of.get(k, DASH) for k in steps)] for key, of in rows.items()]
    header = ["Method", "Backend", *[GUIDANCE] * captioned, *(f"k = {k}" for k in steps)]
    return {"header": header, "rows": lines}


def _number(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"


def _provenance(records: Sequence[Record]) -> dict[str, list[Any]]:
    """One row a key, one column a backend."""
    backends = list(dict.fromkeys(record.row.backend for record in records))
    found: dict[str, dict[str, dict[str, None]]] = {}
    for record in records:
        for key, value in flatten(record.provenance).items():
            found.setdefault(key, {}).setdefault(record.row.backend, {})[value] = None
    rows = [[key, *(_distinct(list(of.get(backend, {}))) for backend in backends)] for key, of in sorted(found.items())]
    return {"header": ["", *("real data" if name == "-" else name for name in backends)], "rows": rows}


def _distinct(values: list[str]) -> str:
    if len(values) > MANY:
        return f"{len(values)} different values"
    return ", ".join(values) or DASH


def _identities(records: Sequence[Record]) -> dict[str, list[Any]]:
    """One row a key, one column an identity."""
    trees = {record.row.identity: flatten(record.identity) for record in records}
    keys = dict.fromkeys(key for tree in trees.values() for key in tree)
    rows = [[key, *(tree.get(key, DASH) for tree in trees.values())] for key in keys]
    return {"header": ["", *(identity[:12] for identity in trees)], "rows": rows}
