"""`t5`: the encoder of a T5 (Raffel et al. 2020) through transformers, its last hidden state, in float32.

Captions are padded on the right and cut at 128 tokens, as Imagen's are (Saharia et al. 2022), unless the tokenizer's
file states another length. The tokenizer is that file alone, so that nothing depends on how a version of transformers
rebuilds it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import T5EncoderModel
from transformers.utils import logging

from harness.metrics.torch_networks import device
from harness.text_encoders import TextEncoder, TextFeatures
from harness.text_encoders.pretrained import WeightFiles
from harness.text_encoders.torch_networks import constructing, features

MAX_TOKENS = 128


def load(name: str, weights: WeightFiles) -> TextEncoder:
    """Build the encoder from a folder in transformers' format, of the encoder alone or of a whole T5.

    A caption that is too long is cut, and ends as the others do. Raises UserError for files of another format, and
    where tokenizer and network do not belong together.
    """
    with constructing(weights):
        network: Any = _network(weights.folder).eval()
        tokenizer, longest = _tokenizer(weights.one("tokenizer.json"))
        _require_match(tokenizer, network.config)
    network.to(device())

    def encode(captions: Sequence[str]) -> TextFeatures:
        encoded = [each.ids for each in tokenizer.encode_batch(list(captions))]
        lengths = torch.tensor([len(ids) for ids in encoded])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.int64)  # any number will do where the mask is False
        ids[mask] = torch.tensor([number for row in encoded for number in row])
        return features(forward, ids, mask)

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states

    return TextEncoder(name, weights.sha256, network.config.d_model, longest, encode)


def _network(folder: Path) -> Any:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of tensors that do not fit has many lines
    logging.disable_progress_bar()
    try:
        loaded: Any = T5EncoderModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    finally:
        logging.set_verbosity(verbosity)
    network, info = loaded
    if wrong := sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]):
        raise ValueError(f"tensor {wrong[0]}")
    return network


def _tokenizer(path: Path) -> tuple[Tokenizer, int]:
    """The tokenizer, and the most tokens of a text."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        raise ValueError(f"{path.name}: {error}") from None
    tokenizer.no_padding()
    if tokenizer.truncation is None:
        tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer, (tokenizer.truncation or {})["max_length"]


def _require_match(tokenizer: Tokenizer, config: Any) -> None:
    largest, known = max(tokenizer.get_vocab().values()), config.vocab_size
    if largest >= known:
        raise ValueError(f"tokenizer.json has a token {largest}, but the network knows {known}")
    empty = tokenizer.encode("").ids
    if empty != [config.eos_token_id]:
        raise ValueError(f"tokenizer.json makes {empty} of the empty text, not T5's end {[config.eos_token_id]}")
