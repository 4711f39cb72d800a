"""`fewstep figures`: every figure, as PNG and SVG."""

from harness.reporting.figures import write_figures
from harness.verbs.table import records
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Draw the figures of the profile's records, samples and training logs."""
    folder = workspace.root / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figures = write_figures(records(workspace), folder, workspace.data("train"))
    print(f"{folder}: {len(figures)} figures")
