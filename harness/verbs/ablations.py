"""`fewstep ablations`: tables and figures of the profile's ablations, beside the runs that they vary."""

from harness.reporting.figures import write_figures
from harness.reporting.tables import write_tables
from harness.verbs.table import records
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Write main.{csv,md,tex,html} and the figures of every record, the ablations' included, into ablations/."""
    paths, folder = records(workspace, ablations=True), workspace.root / "ablations"
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    write_tables(paths, folder)
    drawn = write_figures(paths, figures, workspace.data("train"), workspace.clock, heldout=workspace.data("heldout"))
    print(f"{folder / 'main.csv'}: written, with its renderings and {len(drawn)} figures beside it")
