"""`fewstep extractor`: validate the feature extractor or the CLIP, retrain the committed one, or fetch weights."""

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

MEASURED = {
    "accuracy_heldout": "of the held-out images classified correctly",
    "retrieval_heldout": "of the held-out images find their caption among those of 32",
}


def run(workspace: Workspace, retrain: Path | None, clip: bool = False) -> None:
    """Write what is known of the profile's extractor, or of its CLIP; with `retrain`, train new weights into that file.

    Of a committed one that is its accuracy on the held-out split, which retrained weights are held to as well. Of one
    with published weights it is their hash: loading it compares the hash and shows that the file fits.
    """
    config = workspace.profile.evaluation.clip if clip else workspace.profile.extractor
    if config is None:
        raise UserError(f"profile {workspace.profile.name!r}: evaluation.clip is not set; add it, or leave out --clip")
    out = workspace.clip_report if clip else workspace.extractor_report
    if config.name in pretrained.PRETRAINED:
        if retrain is not None:
            raise UserError(f"the extractor {config.name!r} has published weights; only committed ones are retrained")
        extractor = load_extractor(config)
        report: dict[str, Any] = {"sha256": extractor.weights_hash, "resize": extractor.resize}
        workspace.root.mkdir(parents=True, exist_ok=True)
        write_atomic(out, json.dumps(report, indent=1) + "\n")
        print(f"{config.name}: weights {extractor.weights_hash}")
        return
    train, heldout = (ImageSet.load(workspace.data(split)) for split in ("train", "heldout"))
    committed = import_module(module_of(config))
    if retrain is not None:
        report = committed.train_extractor(train, heldout, retrain)
    else:
        report = committed.validate(committed.WEIGHTS, heldout)
        write_atomic(out, json.dumps(report, indent=1) + "\n")
    measured = "; ".join(f"{report[key]:.2%} {what}" for key, what in MEASURED.items() if key in report)
    print(f"{config.name}: {measured}")


def download(name: str) -> None:
    """Fetch the published weights of the extractor `name` into the user's cache."""
    print(pretrained.download(name))
