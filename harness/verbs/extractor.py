"""`fewstep extractor`: validate the committed feature extractor, or retrain it."""

import json
from pathlib import Path

from harness.datasets import ImageSet
from harness.files import write_atomic
from harness.metrics.digits_cnn import WEIGHTS, train_digits_extractor, validate
from harness.workspace import Workspace


def run(workspace: Workspace, retrain: Path | None) -> None:
    """Write the committed extractor's accuracy on the held-out split; with `retrain`, train new weights into that file.

    Retrained weights are held to the same accuracy, which is stored in the file itself.
    """
    train, heldout = (ImageSet.load(workspace.data(split)) for split in ("train", "heldout"))
    if retrain is not None:
        report = train_digits_extractor(train, heldout, retrain)
    else:
        report = validate(WEIGHTS, heldout)
        write_atomic(workspace.extractor_report, json.dumps(report, indent=1) + "\n")
    print(
        f"{workspace.profile.extractor}: {report['accuracy_heldout']:.2%} of the held-out images classified correctly"
    )
