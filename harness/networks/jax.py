"""The diffusion transformer in equinox; `networks.torch` is its twin, and the parity tests hold them together."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import gelu, silu

from harness.conditions import Condition, Text
from harness.networks.transformer import LAYER_NORM_EPS, MASKED, MLP_RATIO, TransformerSpec


def _modulated_norm(x: Array, shift: Array, scale: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPS) * (1 + scale) + shift


class Linear(eqx.Module):
    """A linear layer over the last axis of a batch, its weight (out, in) as in PyTorch."""

    weight: Array
    bias: Array | None

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        self.weight = jnp.zeros((outputs, inputs))
        self.bias = jnp.zeros(outputs) if bias else None

    def __call__(self, x: Array) -> Array:
        """x (..., in) to (..., out)."""
        out = x @ self.weight.T
        return out if self.bias is None else out + self.bias


class Block(eqx.Module):
    """Attention and a perceptron, each with adaptive layer norm and a gated residual."""

    heads: int = eqx.field(static=True)
    modulation: Linear
    qkv: Linear
    attention_out: Linear
    mlp_in: Linear
    mlp_out: Linear
    text_kv: Linear | None

    def __init__(self, spec: TransformerSpec) -> None:
        width, hidden = spec.width, MLP_RATIO * spec.width
        self.heads = spec.heads
        self.modulation = Linear(width, 6 * width)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.attention_out = Linear(width, width)
        self.mlp_in = Linear(width, hidden)
        self.mlp_out = Linear(hidden, width)
        self.text_kv = Linear(spec.text_width, 2 * width, bias=False) if spec.text_width else None

    def attention(self, x: Array, text: Text | None) -> Array:
        """Multi-head attention to x and text."""
        batch, tokens, width = x.shape
        q, k, v = jnp.transpose(self.qkv(x).reshape(batch, tokens, 3, self.heads, -1), (2, 0, 3, 1, 4))
        scores = q @ k.swapaxes(-1, -2) * (width // self.heads) ** -0.5
        if text is not None and self.text_kv is not None:
            words = self.text_kv(text.tokens).reshape(batch, text.mask.shape[1], 2, self.heads, -1)
            text_k, text_v = jnp.transpose(words, (2, 0, 3, 1, 4))
            seen = q @ text_k.swapaxes(-1, -2) * (width // self.heads) ** -0.5
            scores = jnp.concatenate([scores, jnp.where(text.mask[:, None, None], seen, MASKED)], axis=-1)
            v = jnp.concatenate([v, text_v], axis=2)
        return self.attention_out((jax.nn.softmax(scores, axis=-1) @ v).swapaxes(1, 2).reshape(batch, tokens, width))

    def __call__(self, x: Array, condition: Array, text: Text | None) -> Array:
        """x (batch, tokens, width), condition (batch, 1, width), already through silu."""
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(condition), 6, axis=-1)
        x = x + gate1 * self.attention(_modulated_norm(x, shift1, scale1), text)
        hidden = self.mlp_in(_modulated_norm(x, shift2, scale2))
        return x + gate2 * self.mlp_out(gelu(hidden, approximate=True))


class Transformer(eqx.Module):
    """v = network(z, t, condition), and the tokens after each block."""

    spec: TransformerSpec = eqx.field(static=True)
    patch_in: Linear
    position: Array
    time_in: Linear
    time_out: Linear
    label: Array | None
    caption: Linear | None
    blocks: list[Block]
    final_modulation: Linear
    patch_out: Linear

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec
        self.patch_in = Linear(spec.patch_dim, spec.width)
        self.position = jnp.zeros((spec.tokens, spec.width))
        self.time_in = Linear(spec.width, spec.width)
        self.time_out = Linear(spec.width, spec.width)
        self.label = None if spec.text_width else jnp.zeros((spec.num_classes + 1, spec.width))
        self.caption = Linear(spec.text_width, spec.width) if spec.text_width else None
        self.blocks = [Block(spec) for _ in range(spec.depth)]
        self.final_modulation = Linear(spec.width, 2 * spec.width)
        self.patch_out = Linear(spec.width, spec.patch_dim)

    def __call__(self, z: Array, t: Array, condition: Condition) -> tuple[Array, list[Array]]:
        """z (batch, channels, size, size), t (batch,), a condition of each to v like z, tokens (batch, tokens, width).

        Conditions are classes (batch,), or a Text where the spec has a text_width.
        """
        spec, batch, grid = self.spec, z.shape[0], self.spec.size // self.spec.patch
        patches = jnp.transpose(z.reshape(batch, spec.channels, grid, spec.patch, grid, spec.patch), (0, 2, 4, 1, 3, 5))
        x = self.patch_in(patches.reshape(batch, spec.tokens, spec.patch_dim)) + self.position
        angles = t[:, None] * spec.frequencies
        time = self.time_out(silu(self.time_in(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1))))
        text = condition if isinstance(condition, Text) else None
        joint = silu(time + self._what(condition))[:, None]
        features = []
        for block in self.blocks:
            x = block(x, joint, text)
            features.append(x)
        shift, scale = jnp.split(self.final_modulation(joint), 2, axis=-1)
        out = self.patch_out(_modulated_norm(x, shift, scale))
        out = jnp.transpose(out.reshape(batch, grid, grid, spec.channels, spec.patch, spec.patch), (0, 3, 1, 4, 2, 5))
        return out.reshape(z.shape), features

    def _what(self, condition: Condition) -> Array:
        """(batch, width) of the class, or of the mean token of the text; zero without tokens."""
        if self.caption is None:
            return self.label[condition]  # type: ignore[index]
        count = condition.mask.sum(axis=1, keepdims=True)
        mean = (condition.tokens * condition.mask[:, :, None]).sum(axis=1) / jnp.maximum(count, 1)
        return self.caption(mean) * (count > 0)
