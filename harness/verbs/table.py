"""`fewstep table`: main.csv, published.csv and their renderings."""

from pathlib import Path

from harness.errors import UserError
from harness.reporting.published_tables import write_published
from harness.reporting.records import load_records
from harness.reporting.selection import write_selection
from harness.reporting.statistics import write_statistics
from harness.reporting.tables import write_tables
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Write main.{csv,md,tex,html} from every record, published.* likewise, and what the values are worth.

    That is statistics.{csv,md} and comparisons.{csv,md}, and selection.{csv,md} where students were evaluated while
    they trained.
    """
    paths, selected, folder = records(workspace), selected_records(workspace), workspace.root / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(paths, folder)
    write_published(paths, workspace.profile, folder)
    write_statistics(load_records(paths), folder)
    if selected:
        write_selection(load_records(selected), folder)
    print(f"{folder / 'main.csv'}: written, with its renderings, published.*, statistics.* and comparisons.* beside it")


def records(workspace: Workspace, ablations: bool = False) -> list[Path]:
    """The records of all of the profile's settings. Raises UserError naming the first that is missing."""
    paths = [workspace.floor] + [
        workspace.run(address) / f"metrics-{setting.name}.json"
        for address in workspace.runs() + (workspace.ablations() if ablations else [])
        for setting in workspace.settings(address)
    ]
    for path in paths:
        verbs = "fewstep reference" if path == workspace.floor else "fewstep sample and fewstep evaluate"
        _require(path, verbs)
    return paths


def selected_records(workspace: Workspace) -> list[Path]:
    """The records of the best of n evaluations, of runs that are evaluated while they train; likewise."""
    runs = [run for run in workspace.runs() if workspace.during(run)]
    paths = [workspace.selected(run, setting) for run in runs for setting in workspace.settings(run)]
    for path in paths:
        _require(path, "fewstep evaluate --during")
    return paths


def _require(path: Path, verbs: str) -> None:
    if not path.is_file():
        raise UserError(f"{path}: not there; write it with {verbs}, or run snakemake")
