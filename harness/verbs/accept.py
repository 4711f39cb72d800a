"""`fewstep accept`: a complete run becomes the reference that later ones are checked against."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.checkpoint import differences
from harness.errors import UserError
from harness.files import write_atomic
from harness.reporting.gate import (
    FILE,
    MIN_SEEDS,
    Acceptance,
    GateReference,
    complete_records,
    configuration,
    measured_rows,
    read_reference,
)
from harness.reporting.records import Record
from harness.workspace import REFERENCES, Workspace

ORIGIN = ("fewstep", "git_commit", "versions", "platform", "cpu")


def run(workspace: Workspace, reason: str, out: Path | None) -> None:
    """Write `reference.json` of the profile's run, after the history of the one that it replaces.

    Raises UserError, and writes nothing, for a run of too few seeds, with uncommitted changes, or of several commits,
    versions or machines.
    """
    if not reason.strip():
        raise UserError("--reason is empty; say why these numbers are to be the reference")
    seeds = workspace.profile.seeds
    if len(seeds) < MIN_SEEDS:
        raise UserError(
            f"profile {workspace.profile.name!r}: seeds holds {len(seeds)}, fewer than {MIN_SEEDS}; add some"
        )
    folder = out or REFERENCES / workspace.profile.name
    history = read_reference(folder).history if (folder / FILE).exists() else []
    records = complete_records(workspace)
    accepted: dict[str, Any] = {"reason": reason.strip(), "date": datetime.now(UTC).date().isoformat(), "seeds": seeds}
    reference = GateReference(
        history=[*history, Acceptance(**accepted, **common_origin(records))],
        configuration=configuration(workspace),
        identity=records[0].row.identity,
        rows=measured_rows(records),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, dumps(reference))
    print(f"{folder / FILE}: written, {len(reference.rows)} rows of {len(seeds)} seeds; commit it")


def common_origin(records: Sequence[Record]) -> dict[str, Any]:
    """The software and machine that trained, sampled and evaluated everything; UserError where there is not one."""
    first: dict[str, Any] | None = None
    for record in records:
        for stage in ("training", "sampling", "evaluation"):
            where, found = f"{record.path}: {stage}", record.provenance.get(stage, {})
            if missing := [key for key in ("git_dirty", *ORIGIN) if key not in found]:
                raise UserError(f"{where} has no {missing[0]}, so what ran it is unknown; run the profile again")
            if found["git_dirty"]:
                raise UserError(f"{where} ran with uncommitted changes; commit them and run the profile again")
            origin = {key: found[key] for key in ORIGIN}
            first = first or origin
            if changed := differences(origin, first):
                raise UserError(f"{where}: {changed[0]} as elsewhere in the run; run the profile again, all of it")
    assert first is not None
    return first


def dumps(reference: GateReference) -> str:
    """JSON with one line for each row, so that a diff reads well; six digits are more than machines agree in."""
    content = reference.model_dump(mode="json", by_alias=True)
    rows = [{key: _six_digits(value) for key, value in row.items()} for row in content.pop("rows")]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    return json.dumps(content, indent=1).removesuffix("\n}") + f',\n "rows": [\n  {lines}\n ]\n}}\n'


def _six_digits(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
