"""Features kept on disk by content: the same images seen by the same extractor are not seen twice."""

import hashlib
import json
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np

from harness.datasets.archive import load_arrays, save_arrays
from harness.errors import UserError
from harness.metrics.config import ExtractorConfig
from harness.metrics.extractors import Extractor, Features, module_of
from harness.provenance import source_hash


class FeatureCache:
    """A folder of features, one file for each batch of images; created when needed, it may be deleted at any time.

    A file's name is the hash of the batch's pixels and of the extractor's identity and code, so that no entry is ever
    wrong or out of date, and an extraction that was interrupted goes on where it stopped. Nothing is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def extract(self, images: np.ndarray, extractor: Extractor) -> Features:
        """Features of one batch (n, c, h, w), float32; an entry that is damaged is replaced, with a line on stderr.

        Raises UserError as `Extractor.extract` does, and where the folder cannot be written.
        """
        path = self.path(images, extractor)
        if path.exists():
            try:
                features, logits = load_arrays(path, "features", "logits")
                return Features(features, logits if logits.size else None)
            except UserError:
                print(f"warning: {path}: damaged; its {len(images)} images are extracted anew", file=sys.stderr)
        found = extractor.extract(images, len(images))
        features = found.features.astype(np.float32)
        logits = np.empty(0, np.float32) if found.logits is None else found.logits.astype(np.float32)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be created ({error.strerror}); choose another folder") from None
        save_arrays(path, features=features, logits=logits)
        return Features(features, logits if logits.size else None)

    def path(self, images: np.ndarray, extractor: Extractor) -> Path:
        """Where the features of a batch are kept."""
        seen_by = [extractor.name, extractor.weights_hash, extractor.resize, code_of(extractor.name)]
        identity = [*seen_by, str(images.dtype), images.shape]
        sha = hashlib.sha256(json.dumps(identity).encode())
        sha.update(np.ascontiguousarray(images).data)
        return self.folder / f"{sha.hexdigest()}.npz"


@cache
def code_of(name: str) -> str:
    """12 hexadecimal digits that identify the code of the extractor `name`."""
    return source_hash(module_of(ExtractorConfig(name=name)))


def user_cache() -> FeatureCache:
    """The user's own: $XDG_CACHE_HOME/fewstep/features, or ~/.cache/fewstep/features."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return FeatureCache(Path(root) / "fewstep" / "features")
