"""`shapes-clip`: the committed CLIP of the shapes, over the words of their captions; it runs on the CPU."""

from collections.abc import Sequence

import numpy as np

from harness.metrics import shapes_clip
from harness.text_encoders import TextEncoder, TextFeatures


def load(name: str) -> TextEncoder:
    """Build the encoder: a token for each word, and the end. A caption of more than 19 words is refused.

    So is a word that is not in the vocabulary. Raises UserError where the weights file is not the pinned one.
    """
    clip = shapes_clip.load_clip()

    def encode(captions: Sequence[str]) -> TextFeatures:
        found = clip.text_features(captions)
        return TextFeatures(np.where(found.mask[..., None], found.tokens, np.float32(0)), found.mask)

    width: int = shapes_clip.CONFIG["text_cfg"]["width"]
    return TextEncoder(name, clip.weights_hash, width, shapes_clip.CONTEXT, encode)
