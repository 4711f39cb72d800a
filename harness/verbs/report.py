"""`fewstep report`: one self-contained HTML file."""

from harness.reporting.report import write_report
from harness.verbs.table import records, selected_records
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Write report.html from the profile's records, figures and claims."""
    root = workspace.root
    path, claims = root / "report.html", root / "tables" / "claims.csv"
    write_report(
        records(workspace), root / "figures", path, workspace.extractor_report, claims,
        workspace.profile, selected_records(workspace),
        clip=None if workspace.profile.evaluation.clip is None else workspace.clip_report,
    )  # fmt: skip
    print(f"{path}: open it in a browser")
