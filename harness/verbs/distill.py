"""`fewstep distill`: train one student of one method."""

from harness.addresses import RunAddress
from harness.verbs.train import train
from harness.workspace import Workspace


def run(
    workspace: Workspace, backend: str, method: str, variant: str, student: str, seed: int, guidance: float = 0.0
) -> None:
    """Train the student, or go on training it."""
    train(workspace, RunAddress(backend, method, variant, student, seed, guidance))
