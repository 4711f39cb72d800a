"""`fewstep report`: one self-contained HTML file."""

from harness.reporting.report import write_report
from harness.verbs.table import records
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Write report.html from the profile's records and figures."""
    path = workspace.root / "report.html"
    write_report(records(workspace), workspace.root / "figures", path, workspace.extractor_report)
    print(f"{path}: open it in a browser")
