"""The regression gate: a run's FIDs against those of an accepted reference of the same configuration.

The logarithm of a row's FID varies over seeds, each of which trains a teacher and its students anew. Its standard
deviation is pooled over the reference's rows of one kind (teachers, students), which depend on each other through their
teacher. A row has regressed where the mean over the run's seeds lies above the one-sided prediction interval of the
reference's, at about ERROR_RATE over all rows together.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from harness.addresses import TEACHER, Setting
from harness.checkpoint import differences
from harness.errors import UserError
from harness.reporting.intervals import half_width, pooled_sd
from harness.reporting.records import Record, load_records
from harness.validation import StrictModel, validate
from harness.workspace import Workspace

FILE = "reference.json"
MIN_SEEDS = 5
ERROR_RATE = 0.001
"""About how often an unchanged run fails, all rows together (Bonferroni: rows of one teacher are dependent).

About, because the degrees of freedom are estimated, and because rows of one kind are taken to vary alike.
"""

RowKey = tuple[str, str, str, str, float, int]


class MeasuredRow(StrictModel):
    """One sample set's scores; all but seed and scores tell what was sampled."""

    backend: str
    method: str
    variant: str
    sampler: str
    guidance: float
    steps: int
    seed: int
    fid: float = Field(gt=0)
    inception_score: float | None = Field(alias="is")
    kid: float
    precision: float
    recall: float

    @property
    def key(self) -> RowKey:
        """What was sampled, whatever the seed."""
        return self.backend, self.method, self.variant, self.sampler, self.guidance, self.steps

    @property
    def label(self) -> str:
        """The same, to read."""
        variant = "" if self.variant == "default" else f" {self.variant}"
        return f"{self.backend} {self.method}{variant} {Setting(self.sampler, self.steps, self.guidance).name}"


class Acceptance(StrictModel):
    """Why and when a reference was accepted, and what had made it."""

    reason: str
    date: str
    seeds: list[int]
    fewstep: str
    git_commit: str | None
    versions: dict[str, str]
    platform: str
    cpu: str


class GateReference(StrictModel):
    """The content of `reference.json`."""

    format: Literal[1] = 1
    history: list[Acceptance] = Field(min_length=1, description="oldest first; the last one's are the rows")
    configuration: dict[str, Any] = Field(description="the profile, as far as numbers depend on it")
    identity: str = Field(description="the metrics' identity digest")
    rows: list[MeasuredRow]


def read_reference(folder: Path) -> GateReference:
    """Read `reference.json` of a folder. Raises UserError where it is missing or damaged."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = f"the reference cannot be read ({error.strerror}); make one with fewstep accept, or name another folder"
        raise UserError(f"{path}: {why}") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); restore it from a copy, or delete it and accept anew") from None
    return validate(GateReference, content, str(path))


def load_reference(folder: Path) -> GateReference:
    """A reference to compare with. Raises UserError as `read_reference`, and for repeated, too few or unlike seeds."""
    path, reference = folder / FILE, read_reference(folder)
    first = {row.seed for row in reference.rows if row.key == reference.rows[0].key}
    for rows in grouped(reference.rows).values():
        seeds = [row.seed for row in rows]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"{path}: {rows[0].label} has a seed twice; accept a reference anew")
        if len(seeds) < MIN_SEEDS:
            raise UserError(
                f"{path}: {rows[0].label} has {len(seeds)} seeds, fewer than {MIN_SEEDS}; accept a run of more seeds"
            )
        if set(seeds) != first:
            raise UserError(f"{path}: {rows[0].label} has other seeds than the first row; accept a reference anew")
    return reference


def grouped(rows: Sequence[MeasuredRow]) -> dict[RowKey, list[MeasuredRow]]:
    """Rows by what was sampled, in their order."""
    groups: dict[RowKey, list[MeasuredRow]] = {}
    for row in rows:
        groups.setdefault(row.key, []).append(row)
    return groups


def configuration(workspace: Workspace) -> dict[str, Any]:
    """What the profile says that numbers depend on, seeds apart; methods by name. Defaults are the code's, not its."""
    said = workspace.profile.model_dump(
        mode="json",
        exclude_unset=True,
        exclude={
            "seeds": True,
            "ablations": True,
            "log_every": True,
            "extractor": True,  # the identity tells it
            "published": True,
            "evaluation": {"batch", "fid_parts", "during"},  # these two add numbers, and change none
            "teacher": {"checkpoint_every"},
            "methods": {"__all__": {"checkpoint_every", "repeats"}},
        },
    )
    said["methods"] = {f"{config['id']} ({config.get('variant', 'default')})": config for config in said["methods"]}
    return said


def complete_records(workspace: Workspace) -> list[Record]:
    """The records of all seeds of the profile; `repeats`, which share a teacher, vary less and are left out.

    Raises UserError naming the first that is missing, of another configuration, or of another metric than the others.
    """
    expected = {
        workspace.run(address) / f"metrics-{setting.name}.json": workspace.record_digest(address)
        for address in workspace.runs()
        if address.seed in workspace.profile.seeds
        for setting in workspace.settings(address)
    }
    records = load_records(list(expected))
    first = records[0]
    for record in records:
        if record.provenance.get("config") != expected[record.path]:
            raise UserError(f"{record.path}: of another configuration than the profile's; run the profile again")
        if record.row.identity != first.row.identity:
            changed = "; ".join(differences(record.identity, first.identity)[:3])
            raise UserError(f"{record.path}: another metric than in {first.path} ({changed}); run the profile again")
    return records


def measured_rows(records: Sequence[Record]) -> list[MeasuredRow]:
    """What a reference keeps of records. Raises UserError for a FID that has no logarithm."""
    fields = {field.alias or name for name, field in MeasuredRow.model_fields.items()}
    kept = ({key: value for key, value in r.row.model_dump(by_alias=True).items() if key in fields} for r in records)
    return [validate(MeasuredRow, row, str(r.path)) for r, row in zip(records, kept, strict=True)]


@dataclass(frozen=True)
class Judgement:
    """One row of the run beside the reference's; shifts are differences of mean log FID, the run's minus the other."""

    reference: list[MeasuredRow]
    run: list[MeasuredRow]
    limit: float
    """The largest shift that passes."""

    @property
    def label(self) -> str:
        """The row, to read."""
        return self.run[0].label

    @property
    def shift(self) -> float:
        """Over all seeds of both."""
        return _log_fid(self.run) - _log_fid(self.reference)

    @property
    def paired_shift(self) -> float | None:
        """Over the seeds that both have: zero, up to rounding, while nothing has changed. It decides nothing."""
        seeds = {row.seed for row in self.run} & {row.seed for row in self.reference}
        both = [[row for row in rows if row.seed in seeds] for rows in (self.run, self.reference)]
        return _log_fid(both[0]) - _log_fid(both[1]) if seeds else None

    @property
    def verdict(self) -> Literal["ok", "regression", "improvement"]:
        """An improvement fails nothing: it lies as far on the other side."""
        if abs(self.shift) <= self.limit:
            return "ok"
        return "regression" if self.shift > 0 else "improvement"


def _log_fid(rows: Sequence[MeasuredRow]) -> float:
    return float(np.mean([np.log(row.fid) for row in rows]))


def compare(reference: GateReference, where: Path, workspace: Workspace) -> list[Judgement]:
    """Judge every row of a workspace's run by the reference that was read from the folder `where`.

    Raises UserError where the two are not of one configuration, metric and set of rows, or the run is not complete.
    """
    changed = differences(configuration(workspace), reference.configuration)
    anew = "use the profile that it was made with, or accept a new reference"
    if changed:
        raise UserError(f"{where / FILE}: of another configuration ({'; '.join(changed[:3])}); {anew}")
    records = complete_records(workspace)
    if records[0].row.identity != reference.identity:
        theirs = f"identity {reference.identity}, the run's is {records[0].row.identity}"
        raise UserError(f"{where / FILE}: of another metric ({theirs}); accept a new reference")
    run, accepted = grouped(measured_rows(records)), grouped(reference.rows)
    for rows, others, missing in ((accepted, run, "the run"), (run, accepted, "the reference")):
        for key in rows:
            if key not in others:
                raise UserError(f"{where / FILE}: {missing} has no row {rows[key][0].label}; accept a new reference")
    return [Judgement(accepted[key], rows, limit(accepted, key, len(rows))) for key, rows in run.items()]


def limit(reference: dict[RowKey, list[MeasuredRow]], key: RowKey, seeds: int) -> float:
    """How far above the mean log FID of the reference's row `key` that of a run of this many seeds may lie.

    Every row of the reference has the same seeds, once each, as `load_reference` ensures.
    """
    kind = [rows for other, rows in reference.items() if _is_teacher(other) == _is_teacher(key)]
    by_seed = [sorted(rows, key=lambda row: row.seed) for rows in kind]
    sd, freedom = pooled_sd(np.log([[row.fid for row in rows] for rows in by_seed]).T)
    one_sided = 1 - 2 * ERROR_RATE / len(reference)
    return half_width(sd**2 * (1 / seeds + 1 / len(reference[key])), freedom, one_sided)


def _is_teacher(key: RowKey) -> bool:
    return key[1] == TEACHER
