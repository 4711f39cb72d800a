"""Text encoders: frozen networks, addressed by their weights' hash, that turn captions into features of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from harness.errors import UserError
from harness.metrics.pretrained import libraries_for
from harness.text_encoders.config import TextConfig
from harness.text_encoders.pretrained import FORMATS, locate, read
from harness.validation import suggest

# name -> module, imported on use because its libraries are heavy. Those of `pretrained.FORMATS` read published weights
# and have `load(name, weights) -> TextEncoder`; the others are committed with theirs and have `load(name)`.
ENCODERS = {
    "shapes-clip": "harness.text_encoders.shapes_clip",
    "t5": "harness.text_encoders.t5",
    "open-clip": "harness.text_encoders.open_clip_text",
}


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """Features of n captions, each of at most T tokens.

    tokens: float32 (n, T, dimension), 0 on padding; mask: bool (n, T), a caption's own tokens first, False on padding.
    """

    tokens: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A frozen network.

    weights_hash: SHA-256 (hex) of all weights and tokenizer files that decide the features; dimension: width of a
    token; max_tokens: of a caption, its end included; encode: captions -> their features, each without regard to the
    others. A longer caption is cut or refused, as the encoder's module says; the empty one has a token.
    """

    name: str
    weights_hash: str
    dimension: int
    max_tokens: int
    encode: Callable[[Sequence[str]], TextFeatures]


def load_encoder(config: TextConfig) -> TextEncoder:
    """Load a text encoder, on the GPU where there is one; nothing is downloaded.

    Raises UserError for an unknown name, for weights that are absent, damaged, or other than the stated ones, and where
    a library that it needs is not installed.
    """
    name = module_of(config)
    with libraries_for(f"the text encoder {config.encoder!r}"):
        module = import_module(name)
        weights = [read(config)] if config.encoder in FORMATS else []
        encoder: TextEncoder = module.load(config.encoder, *weights)
    return encoder


def require_available(config: TextConfig) -> None:
    """Raise UserError where a text encoder is unknown or a file that it needs is absent; loads nothing."""
    module_of(config)
    if config.encoder in FORMATS:
        locate(config)


def module_of(config: TextConfig) -> str:
    """The module that loads a text encoder.

    Raises UserError for an unknown name, weights that it does not take, and where it has none of its own.
    """
    if config.encoder not in ENCODERS:
        raise UserError(f"unknown text encoder {config.encoder!r}; {suggest(config.encoder, ENCODERS)}")
    if config.encoder in FORMATS and config.weights is None:
        raise UserError(f"the text encoder {config.encoder!r} has no weights of its own; name their folder (weights)")
    if config.encoder not in FORMATS and config.weights is not None:
        raise UserError(f"the text encoder {config.encoder!r} is committed with its weights and takes no others")
    return ENCODERS[config.encoder]
