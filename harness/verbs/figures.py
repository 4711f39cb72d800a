"""`fewstep figures`: every figure, as PNG and SVG."""

from harness.reporting.figures import write_figures
from harness.verbs.table import records, selected_records
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Draw the figures of the profile's records, samples and training logs."""
    paths, folder = records(workspace), workspace.root / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figures = write_figures(
        paths, folder, workspace.data("train"), workspace.clock, selected_records(workspace),
        heldout=workspace.data("heldout"),
    )  # fmt: skip
    print(f"{folder}: {len(figures)} figures")
