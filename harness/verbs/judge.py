"""What all evaluated images of a profile are scored by."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.datasets import ImageSet
from harness.metrics.cache import FeatureCache
from harness.metrics.captions import CaptionJudge, load_judge
from harness.metrics.evaluate import evaluate_images
from harness.metrics.extraction import in_batches, stream_moments
from harness.metrics.extractors import load_extractor
from harness.metrics.reference import Identity, Reference
from harness.metrics.scores import fid
from harness.prompts import BALANCED, CAPTIONED
from harness.workspace import Workspace


class Judge:
    """The extractor, the reference, and with captions what judges those.

    Images drawn for classes are held against the training split; images drawn for captions of held-out images against
    the held-out split, whose scenes and captions no training image has where the data set says so (zero-shot).
    """

    def __init__(self, workspace: Workspace) -> None:
        self.extractor = load_extractor(workspace.profile.extractor)
        train, heldout = (Reference.load(workspace.reference(split)) for split in ("train", "heldout"))
        self.train_images = ImageSet.load(workspace.data("train")).pixels
        self.cache = FeatureCache(workspace.features)
        self.captions: CaptionJudge | None = None
        self.policy, self.reference = BALANCED, train
        self.second: Reference | None = heldout
        if workspace.profile.text is not None:
            self.policy, self.reference, self.second = CAPTIONED, heldout, None
            self.heldout = ImageSet.load(workspace.data("heldout"))
            self.captions = load_judge(workspace.profile.evaluation.clip, self.heldout.name)

    @property
    def extra_identity(self) -> Identity:
        """What numbers depend on beside extractor, reference, sample count and label policy."""
        return {} if self.captions is None else self.captions.identity

    @property
    def prompts_digest(self) -> str | None:
        """The digest of the images whose captions samples are to be drawn for."""
        return None if self.captions is None else self.heldout.digest

    def fid(self, images: np.ndarray) -> float:
        """FID of uint8 images (n, c, h, w) alone."""
        return fid(stream_moments(in_batches(images, self.extractor), self.extractor), self.reference.moments)

    def scores(
        self, images: np.ndarray, labels: np.ndarray, *, uncertainty: bool = True, fid_parts: Sequence[int] = ()
    ) -> dict[str, Any]:
        """All scores of the first n images drawn for the profile's prompts, whose classes are `labels` (n,)."""
        scores = evaluate_images(
            images, labels, self.extractor, self.reference, self.second, self.train_images, self.cache,
            uncertainty=uncertainty, fid_parts=fid_parts,
        )  # fmt: skip
        if self.captions is None:
            return scores
        assert self.heldout.captions is not None
        captions = self.heldout.captions[np.arange(len(images)) % len(self.heldout)].tolist()
        return scores | self.captions.scores(images, captions, labels, self.cache)
