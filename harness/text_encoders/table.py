"""Features of a data set's captions, computed once for each different caption and kept in a file."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from harness.datasets.archive import load_arrays, map_array, save_arrays
from harness.errors import UserError
from harness.text_encoders import TextEncoder, TextFeatures

BATCH = 256
"""Captions that an encoder is given at a time."""


@dataclass(frozen=True, eq=False)
class TextTable:
    """The features of u different captions, and whose they are.

    tokens: float16 (u, T, dimension), finite, 0 on padding, T that of the longest caption; mask: bool (u, T), False on
    padding; index: int64 (n,), the row of each image's caption; identity: as `text_identity` makes it.
    """

    tokens: np.ndarray
    mask: np.ndarray
    index: np.ndarray
    identity: dict[str, str]

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def build(cls, captions: np.ndarray, encoder: TextEncoder, title: str) -> "TextTable":
        """Encode the captions (StringDType, n) of as many images; `title` stands beside the progress bar.

        Equal sets of captions have equal rows, in whatever order they come. Raises UserError where the encoder refuses
        a caption, and where a feature is not finite in half precision.
        """
        found: list[str] = captions.tolist()
        # by length, because an encoder may pad a batch to its longest caption
        unique = sorted(set(found), key=lambda caption: (len(caption), caption))
        parts = []
        with tqdm(total=len(unique), desc=title, unit="caption", mininterval=1) as bar:
            for start in range(0, len(unique), BATCH):
                parts.append(_encode(encoder, unique[start : start + BATCH]))
                bar.update(len(parts[-1].mask))
        longest = max(part.mask.shape[1] for part in parts)
        tokens = np.zeros((len(unique), longest, encoder.dimension), np.float16)
        mask = np.zeros((len(unique), longest), bool)
        for start in range(0, len(unique), BATCH):
            part = parts.pop(0)  # and is freed: all of them take as much memory as the table
            rows, columns = slice(start, start + BATCH), slice(part.mask.shape[1])
            tokens[rows, columns], mask[rows, columns] = part.tokens, part.mask
        row_of = {caption: row for row, caption in enumerate(unique)}
        index = np.array([row_of[caption] for caption in found], np.int64)
        return cls(tokens, mask, index, text_identity(captions, encoder))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the identity and of all features."""
        sha = hashlib.sha256(repr((self.tokens.shape, len(self), sorted(self.identity.items()))).encode())
        for array, dtype in ((self.tokens, "<f2"), (self.mask, "?"), (self.index, "<i8")):
            sha.update(np.ascontiguousarray(array, dtype).data)
        return sha.hexdigest()

    def save(self, path: Path | str) -> None:
        """Write the table and its digest to `path` (npz), atomically. Raises UserError where that fails."""
        save_arrays(
            path,
            tokens=self.tokens,
            mask=self.mask,
            index=self.index,
            identity=json.dumps(self.identity, sort_keys=True),
            digest=self.digest,
        )

    @classmethod
    def load(cls, path: Path | str) -> "TextTable":
        """Read what `save` wrote; the tokens stay on disk until they are used.

        Raises UserError where the file is absent, damaged, or fails its digest.
        """
        if not Path(path).exists():
            raise UserError(f"{path}: no such file; write it first, with: fewstep text")
        mask, index, identity, digest = load_arrays(path, "mask", "index", "identity", "digest")
        try:
            table = cls(map_array(path, "tokens"), mask, index, json.loads(str(identity)))
            intact = table.digest == str(digest)
        except (ValueError, AttributeError):  # an identity of another program's file
            intact = False
        if not intact:
            raise UserError(f"{path}: its content does not match its digest; delete it and produce it anew")
        return table

    def rows(self, positions: np.ndarray) -> TextFeatures:
        """The features of the captions of the images `positions` (m,); float32 tokens (m, T, dimension)."""
        rows = self.index[positions]
        return TextFeatures(self.tokens[rows].astype(np.float32), self.mask[rows])


def text_identity(captions: np.ndarray, encoder: TextEncoder) -> dict[str, str]:
    """Everything that a table depends on, by name or by hash: the encoder, its weights, and the images' captions."""
    weights = {"encoder": encoder.name, "encoder_weights": encoder.weights_hash}
    return weights | {"captions_digest": captions_digest(captions)}


def captions_digest(captions: np.ndarray) -> str:
    """SHA-256 (hex) of captions (StringDType, n) in their order."""
    return hashlib.sha256(json.dumps(captions.tolist(), ensure_ascii=False).encode()).hexdigest()


def _encode(encoder: TextEncoder, captions: list[str]) -> TextFeatures:
    """Features of a few captions in float16, cut to the longest of them."""
    found = encoder.encode(captions)
    longest = int(found.mask.sum(axis=1).max())
    with np.errstate(over="ignore"):
        tokens = found.tokens[:, :longest].astype(np.float16)
    finite = np.isfinite(tokens).all(axis=(1, 2))
    if not finite.all():
        raise UserError(
            f"features of the text encoder {encoder.name!r} are not finite in half precision, first those of "
            f"{captions[finite.argmin()]!r}; check its weights"
        )
    return TextFeatures(tokens, found.mask[:, :longest])
