"""`fewstep teacher`: train the teacher of one backend and seed."""

from harness.addresses import TEACHER, RunAddress
from harness.verbs.train import train
from harness.workspace import Workspace


def run(workspace: Workspace, backend: str, seed: int) -> None:
    """Train the teacher, or go on training it."""
    train(workspace, RunAddress(backend, TEACHER, "default", TEACHER, seed))
