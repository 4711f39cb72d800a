"""`open-clip`: the text tower of a CLIP in open_clip's own format, its tokens after the last norm, in float32.

Towers with CLIP's own tokenizer alone: those of other libraries would be downloaded, or want a tokenizer of theirs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from harness.metrics.torch_networks import device
from harness.text_encoders import TextEncoder, TextFeatures
from harness.text_encoders.pretrained import WeightFiles
from harness.text_encoders.torch_networks import constructing, features


def load(name: str, weights: WeightFiles) -> TextEncoder:
    """Build the encoder from a folder of open_clip_config.json and the weights.

    A caption that is longer than the tower's context is cut before its end token. Raises UserError for files of another
    format, and for a tower of another kind.
    """
    with constructing(weights):
        config = json.loads(weights.one("open_clip_config.json").read_bytes())["model_cfg"]
        _require_own_tower(config)
        path = weights.one("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        network = _network(config, path).eval()
        tokenise = _tokenizer(config["text_cfg"], network.context_length)
        if tokenise.vocab_size > network.vocab_size:
            raise ValueError(f"knows {network.vocab_size} tokens, and the tokenizer makes {tokenise.vocab_size}")
    network.to(device())
    tower = getattr(network, "text", network)  # which CLIP itself has among its own parts
    context, width = tower.positional_embedding.shape

    def encode(captions: Sequence[str]) -> TextFeatures:
        ids = tokenise(list(captions))
        ends = (ids == tokenise.eot_token_id).int().argmax(dim=1, keepdim=True)
        return features(forward, ids, torch.arange(context) <= ends)

    def forward(ids: Tensor, _mask: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = tower.ln_final.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            network.encode_text(ids)  # of the whole context, as in training
        finally:
            hook.remove()
        return seen[0]

    return TextEncoder(name, weights.sha256, width, context, encode)


def _require_own_tower(config: dict[str, Any]) -> None:
    text = config["text_cfg"]
    foreign = [key for key in ("hf_model_name", "hf_tokenizer_name", "embed_cls") if text.get(key)]
    if foreign or "multimodal_cfg" in config:
        raise ValueError(f"{[*foreign, 'multimodal_cfg'][0]} in open_clip_config.json: not CLIP's own text tower")


def _network(config: dict[str, Any], path: Path) -> Any:
    """The model without its image tower."""
    parts = {key: value for key, value in config.items() if key != "custom_text"}
    # True would fetch weights of an image tower that is about to be overwritten
    parts["vision_cfg"] = {**parts["vision_cfg"], "timm_model_pretrained": False}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    network = kind(**parts)
    open_clip.load_checkpoint(network, str(path), weights_only=True)
    del network.visual
    return network


def _tokenizer(text: dict[str, Any], context: int) -> Any:
    # without a reduction, which would choose the tokens of long captions at random
    options = {**(text.get("tokenizer_kwargs") or {}), "context_length": context, "reduction_mask": ""}
    return open_clip.SimpleTokenizer(**options)
