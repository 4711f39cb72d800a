"""`fewstep table`: main.csv, published.csv and their renderings."""

from pathlib import Path

from harness.errors import UserError
from harness.reporting.published_tables import write_published
from harness.reporting.tables import write_tables
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Write main.csv, main.md, main.tex and main.html from every record of the profile, and published.* likewise."""
    paths, folder = records(workspace), workspace.root / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(paths, folder)
    write_published(paths, workspace.profile, folder)
    print(f"{folder / 'main.csv'}: written, with main.md, main.tex and main.html beside it, and published.*")


def records(workspace: Workspace, ablations: bool = False) -> list[Path]:
    """The records of all of the profile's settings. Raises UserError naming the first that is missing."""
    paths = [workspace.floor] + [
        workspace.run(address) / f"metrics-{setting.name}.json"
        for address in workspace.runs() + (workspace.ablations() if ablations else [])
        for setting in workspace.settings(address)
    ]
    for path in paths:
        if not path.is_file():
            verbs = "fewstep reference" if path == workspace.floor else "fewstep sample and fewstep evaluate"
            raise UserError(f"{path}: not there; write it with {verbs}, or run snakemake")
    return paths
