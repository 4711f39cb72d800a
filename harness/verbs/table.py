"""`fewstep table`: main.csv and its renderings."""

from pathlib import Path

from harness.errors import UserError
from harness.reporting.tables import write_tables
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Write main.csv, main.md, main.tex and main.html from every record of the profile."""
    folder = workspace.root / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(records(workspace), folder)
    print(f"{folder / 'main.csv'}: written, with main.md, main.tex and main.html beside it")


def records(workspace: Workspace) -> list[Path]:
    """The records of all of the profile's settings. Raises UserError naming the first that is missing."""
    paths = [workspace.floor] + [
        workspace.run(address) / f"metrics-{setting.name}.json"
        for address in workspace.runs()
        for setting in workspace.settings(address)
    ]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: not there; sample and evaluate this run first, or run snakemake")
    return paths
