"""`fewstep text`: the features of every caption, which a text-to-image generator is conditioned on."""

import numpy as np

from harness.datasets import ImageSet
from harness.errors import UserError
from harness.text_encoders import TextEncoder, load_encoder
from harness.text_encoders.table import TextTable, text_identity
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Write the features of the captions of both splits; those that are there already, of equal captions, are kept.

    Raises UserError where the profile has no section `text`, its data set has no captions, or the encoder or the images
    are missing.
    """
    profile = workspace.profile
    if profile.text is None:
        raise UserError(f"profile {profile.name!r}: the section text (encoder, weights) is missing; add it")
    captions = {split: _captions(workspace, split) for split in ("train", "heldout")}
    encoder = load_encoder(profile.text)
    for split, own in captions.items():
        path = workspace.text(split)
        table = _table(workspace, split, own, encoder)
        different, longest, width = table.tokens.shape
        print(
            f"{path}: {different} different captions of {len(own)} images, at most {longest} tokens of {width} values; "
            f"{encoder.name} {encoder.weights_hash}"
        )


def _captions(workspace: Workspace, split: str) -> np.ndarray:
    images = ImageSet.load(workspace.data(split))
    if images.captions is None:
        raise UserError(
            f"profile {workspace.profile.name!r}: the data set {images.name!r} has no captions; name one that has "
            "(data), or leave out the section text"
        )
    return images.captions


def _table(workspace: Workspace, split: str, captions: np.ndarray, encoder: TextEncoder) -> TextTable:
    path = workspace.text(split)
    if path.exists():
        table = TextTable.load(path)
        if table.identity == text_identity(captions, encoder):
            return table
    table = TextTable.build(captions, encoder, f"{split} captions")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.save(path)
    return table
