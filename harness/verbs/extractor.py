"""`fewstep extractor`: validate the feature extractor, retrain the committed one, or fetch published weights."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from harness.datasets import ImageSet
from harness.errors import UserError
from harness.files import write_atomic
from harness.metrics import pretrained
from harness.metrics.extractors import load_extractor, module_of
from harness.workspace import Workspace


def run(workspace: Workspace, retrain: Path | None) -> None:
    """Write what is known of the profile's extractor; with `retrain`, train new weights into that file.

    Of the committed one that is its accuracy on the held-out split, which retrained weights are held to as well. Of one
    with published weights it is their hash: loading it compares the hash and shows that the file fits.
    """
    config = workspace.profile.extractor
    if config.name in pretrained.PRETRAINED:
        if retrain is not None:
            raise UserError(f"the extractor {config.name!r} has published weights; only committed ones are retrained")
        extractor = load_extractor(config)
        report: dict[str, Any] = {"sha256": extractor.weights_hash, "resize": extractor.resize}
        workspace.root.mkdir(parents=True, exist_ok=True)
        write_atomic(workspace.extractor_report, json.dumps(report, indent=1) + "\n")
        print(f"{config.name}: weights {extractor.weights_hash}")
        return
    train, heldout = (ImageSet.load(workspace.data(split)) for split in ("train", "heldout"))
    committed = import_module(module_of(config))
    if retrain is not None:
        report = committed.train_extractor(train, heldout, retrain)
    else:
        report = committed.validate(committed.WEIGHTS, heldout)
        write_atomic(workspace.extractor_report, json.dumps(report, indent=1) + "\n")
    print(f"{config.name}: {report['accuracy_heldout']:.2%} of the held-out images classified correctly")


def download(name: str) -> None:
    """Fetch the published weights of the extractor `name` into the user's cache."""
    print(pretrained.download(name))
