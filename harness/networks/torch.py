"""The diffusion transformer in PyTorch; `networks.jax` is its twin, and the parity tests hold them together."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from harness.conditions import Condition, Text
from harness.networks.transformer import LAYER_NORM_EPS, MASKED, MLP_RATIO, TransformerSpec


def _modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    # written out: what the fused layer_norm gives for the gradient of a forward-mode derivative is wrong
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(variance + LAYER_NORM_EPS) * (1 + scale) + shift


class Block(nn.Module):
    """Attention and a perceptron, each with adaptive layer norm and a gated residual."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        width, hidden = spec.width, MLP_RATIO * spec.width
        self.heads = spec.heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)
        if spec.text_width:
            self.text_kv = nn.Linear(spec.text_width, 2 * width, bias=False)

    def attention(self, x: Tensor, text: Text | None) -> Tensor:
        """Multi-head attention to x and text, written out because fused kernels have no forward-mode derivative."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5
        if text is not None:
            words = text.mask.shape[1]
            text_k, text_v = self.text_kv(text.tokens).reshape(batch, words, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
            seen = q @ text_k.transpose(-1, -2) * (width // self.heads) ** -0.5
            scores = torch.cat([scores, seen.masked_fill(~text.mask[:, None, None], MASKED)], dim=-1)
            v = torch.cat([v, text_v], dim=2)
        return self.attention_out((torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, x: Tensor, condition: Tensor, text: Text | None) -> Tensor:
        """x (batch, tokens, width), condition (batch, 1, width), already through silu."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate1 * self.attention(_modulated_norm(x, shift1, scale1), text)
        hidden = self.mlp_in(_modulated_norm(x, shift2, scale2))
        return x + gate2 * self.mlp_out(gelu(hidden, approximate="tanh"))


class Transformer(nn.Module):
    """v = network(z, t, condition), and the tokens after each block."""

    frequencies: Tensor

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_in = nn.Linear(spec.patch_dim, spec.width)
        self.position = nn.Parameter(torch.empty(spec.tokens, spec.width))
        self.time_in = nn.Linear(spec.width, spec.width)
        self.time_out = nn.Linear(spec.width, spec.width)
        if spec.text_width:
            self.caption = nn.Linear(spec.text_width, spec.width)
        else:
            self.label = nn.Parameter(torch.empty(spec.num_classes + 1, spec.width))
        self.blocks = nn.ModuleList([Block(spec) for _ in range(spec.depth)])
        self.final_modulation = nn.Linear(spec.width, 2 * spec.width)
        self.patch_out = nn.Linear(spec.width, spec.patch_dim)
        self.register_buffer("frequencies", torch.from_numpy(spec.frequencies), persistent=False)

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        """z (batch, channels, size, size), t (batch,), a condition of each to v like z, tokens (batch, tokens, width).

        Conditions are classes (batch,), or a Text where the spec has a text_width.
        """
        spec, batch, grid = self.spec, z.shape[0], self.spec.size // self.spec.patch
        patches = z.reshape(batch, spec.channels, grid, spec.patch, grid, spec.patch).permute(0, 2, 4, 1, 3, 5)
        x = self.patch_in(patches.reshape(batch, spec.tokens, spec.patch_dim)) + self.position
        angles = t[:, None] * self.frequencies
        time = self.time_out(silu(self.time_in(torch.cat([angles.sin(), angles.cos()], dim=-1))))
        text = condition if isinstance(condition, Text) else None
        joint = silu(time + self._what(condition))[:, None]
        features = []
        for block in self.blocks:
            x = block(x, joint, text)
            features.append(x)
        shift, scale = self.final_modulation(joint).chunk(2, dim=-1)
        out = self.patch_out(_modulated_norm(x, shift, scale))
        out = out.reshape(batch, grid, grid, spec.channels, spec.patch, spec.patch).permute(0, 3, 1, 4, 2, 5)
        return out.reshape(z.shape), features

    def _what(self, condition: Condition) -> Any:
        """(batch, width) of the class, or of the mean token of the text; zero without tokens."""
        if not self.spec.text_width:
            return self.label[condition]
        count = condition.mask.sum(dim=1, keepdim=True)
        mean = (condition.tokens * condition.mask[:, :, None]).sum(dim=1) / count.clamp(min=1)
        return self.caption(mean) * (count > 0)
