"""How well images show what their captions say: the CLIP score, and for the shapes what a classifier reads in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.datasets import shapes
from harness.metrics import shapes_cnn
from harness.metrics.cache import FeatureCache
from harness.metrics.clip import CLIP_SCORE, ClipExtractor, clip_scores
from harness.metrics.config import ExtractorConfig
from harness.metrics.extraction import gather, in_batches
from harness.metrics.extractors import load_extractor, require_clip
from harness.metrics.reference import Identity, extractor_identity

SCORES = ("clip", "attribute_accuracy")
SHAPES = "shapes"


@dataclass(frozen=True, eq=False)
class CaptionJudge:
    """Scores images against captions. clip: the CLIP score's network; attributes: whether the images are shapes."""

    clip: ClipExtractor | None
    attributes: bool

    @property
    def identity(self) -> Identity:
        """What the scores depend on beside images and captions."""
        identity: Identity = {}
        if self.clip is not None:
            identity |= {f"clip_{key}": value for key, value in extractor_identity(self.clip).items()}
            identity["clip_score"] = CLIP_SCORE
        return identity | ({"attributes": shapes_cnn.WEIGHTS_SHA256} if self.attributes else {})

    def scores(
        self, images: np.ndarray, captions: Sequence[str], labels: np.ndarray, cache: FeatureCache | None = None
    ) -> dict[str, Any]:
        """Scores of uint8 images (n, c, h, w), drawn for as many captions, whose own images have these labels (n,).

        Returns `clip`, the mean CLIP score, and clip_se, its standard error over images; of shapes attribute_accuracy,
        the share of images of one object in which all that was asked for is read, and `attributes`, the shares of each
        attribute and all of them (`joint`), with one object and with two. What does not apply is None, or left out.
        """
        found: dict[str, Any] = dict.fromkeys(SCORES)
        if self.clip is not None:
            features = gather(in_batches(images, self.clip), len(images), self.clip, cache).features
            each = clip_scores(features, encode_each(self.clip.encode_text, captions))
            found |= {"clip": float(each.mean()), "clip_se": float(each.std(ddof=1) / len(each) ** 0.5)}
        if self.attributes:
            single = shapes.SINGLE[labels]
            read = {
                kind: shapes_cnn.attribute_accuracy(images[rows], labels[rows])
                for kind, rows in (("one_object", single), ("two_objects", ~single))
                if rows.any()
            }
            found |= {"attribute_accuracy": read.get("one_object", {}).get("joint"), "attributes": read}
        return found


def load_judge(clip: ExtractorConfig | None, data: str) -> CaptionJudge:
    """What judges images of the data set `data`. Raises UserError where `clip` is no CLIP or lacks its weights."""
    if clip is not None:
        require_clip(clip)
    extractor = None if clip is None else load_extractor(clip)
    assert extractor is None or isinstance(extractor, ClipExtractor)
    return CaptionJudge(extractor, data == SHAPES)


def encode_each(encode: Callable[[Sequence[str]], np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Features (n, d) of captions, each different one encoded once."""
    unique, rows = np.unique(np.array(captions, dtype=object), return_inverse=True)
    return encode(unique.tolist())[rows]
