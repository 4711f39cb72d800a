"""`fewstep check`: a run against the accepted reference of its profile."""

import json
import sys
from pathlib import Path

from harness.errors import UserError
from harness.files import write_atomic
from harness.reporting import gate_output
from harness.reporting.gate import compare, load_reference
from harness.workspace import REFERENCES, Workspace


def run(workspace: Workspace, against: Path | None, junit: Path | None, as_json: bool, verbose: bool) -> None:
    """Print what moved, and exit with status 1 where a row has regressed."""
    if junit is not None:
        if not junit.parent.is_dir():
            raise UserError(f"{junit.parent}: the output folder does not exist; create it, or choose another")
        junit.unlink(missing_ok=True)  # else an earlier verdict would stand where there is none
    name = workspace.profile.name
    folder = against or REFERENCES / name
    reference = load_reference(folder)
    judgements = compare(reference, folder, workspace)
    if junit is not None:
        write_atomic(junit, gate_output.junit(judgements, name))
    if as_json:
        print(json.dumps(gate_output.as_json(judgements), indent=1))
    else:
        print(gate_output.text(judgements, reference, verbose=verbose))
    if gate_output.regressions(judgements):
        sys.exit(1)
