"""A training run that was never interrupted."""

from pathlib import Path

import pytest

from tests.unit.training_runs import make_run, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(make_run(folder))
    return folder
