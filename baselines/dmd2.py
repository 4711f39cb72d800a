"""DMD2 (Yin et al. 2024): distribution matching without pairs, with an adversarial head and backward simulation."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from array_api_compat import array_namespace
from pydantic import Field

from harness.conditions import Condition, each
from harness.diffusion import Array, diffuse
from harness.distribution_matching import DistributionMatching
from harness.method import Batch, Draws, Head, Networks, Ops, Options, Start, Turn, WeightName
from harness.noise import Noise


class DMD2Options(Options):
    """How often, at which levels, and with which weights."""

    weight: WeightName = Field("dmd-adaptive", description="w(s) of the student's gradient, by name")
    auxiliary_updates: int = Field(5, ge=1, description="updates of auxiliary and head for one of the student")
    levels: Literal["all", "step"] = Field(
        "all", description="s anywhere on the clock, as official, or within the step of the sampler that made x~"
    )
    generator_weight: float = Field(0.2, ge=0, description="weight of the student's adversarial term")
    head_weight: float = Field(1.0, ge=0, description="weight of the head's term in the auxiliary's turn")


def score(params: Mapping[str, Array], tokens: Array) -> Array:
    """The head's logit (batch,) that tokens (batch, tokens, width) come of data: a perceptron, its input normalised."""
    xp = array_namespace(tokens)
    flat = xp.reshape(tokens, (tokens.shape[0], -1))
    flat = flat / (xp.mean(flat**2, axis=-1, keepdims=True) + 1e-6) ** 0.5
    hidden = flat @ params["hidden.weight"].T + params["hidden.bias"]
    hidden = hidden * (1 + xp.tanh(hidden / 2)) / 2  # silu
    return (hidden @ params["out.weight"].T + params["out.bias"])[:, 0]


def softplus(x: Array) -> Array:
    """log(1 + e^x)."""
    xp = array_namespace(x)
    return xp.logaddexp(x, xp.zeros_like(x))


def each_step(x: Array, k: int) -> Array:
    """(batch, ...) to (batch * k, ...), every sample k times."""
    return array_namespace(x).repeat(x, k, axis=0)


def flatten_steps(x: Array) -> Array:
    """(batch, k, ...) to (batch * k, ...)."""
    return array_namespace(x).reshape(x, (-1, *x.shape[2:]))


class DMD2(DistributionMatching):
    """Two time scales (section 4.2), the adversarial loss (4.3), several steps (4.4) and backward simulation (4.5).

    A sample of the batch is one run of the student's own sampler, from pure noise: with k > 1 each of its k inputs z_t,
    a constant, trains the student, where the official code runs it up to a random step and trains that one. The head
    reads the auxiliary's last tokens at the same z_s; the official code noises once more for it. Its weights are 0.003
    and 0.01 of terms that are means over pixels, so 0.003 and 0.01 times the number of pixels here.
    """

    id = "dmd2"
    Options = DMD2Options

    @property
    def turns(self) -> Mapping[str, Turn]:
        """Calls of a whole batch; on k inputs for each sample they count k times."""
        k = self.k
        return {
            "auxiliary": Turn(("auxiliary", "head"), forward=k, gradient=2 * k),
            "student": Turn(("student",), forward=k, gradient=k, input_gradient=k, guided=k),
        }

    def networks(self) -> dict[str, Start]:
        """Teacher, student and auxiliary, and a fresh head."""
        width = self.spec.width
        shapes = {"hidden.weight": (width, width * self.spec.tokens), "hidden.bias": (width,)}
        shapes |= {"out.weight": (1, width), "out.bias": (1,)}
        return {**super().networks(), "head": Head(shapes, score)}

    def turn(self, step: int) -> str:
        """`auxiliary_updates` of auxiliary and head, then one of the student."""
        n = self.options.auxiliary_updates
        return "auxiliary" if step % (n + 1) < n else "student"

    def draw(self, noise: Noise, step: int, start: int, count: int) -> Draws:
        """For each step of the sampler: the level s, and the noises of its z_t, of z_s, and of data at that level."""
        low, high = self.levels
        t = np.array(self.times(self.k))
        if self.options.levels == "step":
            low, high = np.maximum(low, np.append(t[1:], 0)), np.minimum(high, t)
        u = noise.uniform("dmd2/s", step, start, count, (self.k,))
        names, shape = ("eps_t", "eps_s", "eps_data"), (self.k, *self.shape)
        return {
            "s": (low + (high - low) * u).astype("float32"),
            **{name: noise.normal(f"dmd2/{name}", step, start, count, shape) for name in names},
        }

    def simulate(self, nets: Networks, eps: Array, condition: Condition, ops: Ops) -> Array:
        """The x~ of every step of the student's sampler (batch * k, ...), from the noise of its inputs (batch, k, ...).

        The steps are joined by constants: each x~ has the gradient of its own evaluation alone.
        """
        xp = array_namespace(eps)
        xs: list[Array] = []
        z = eps[:, 0, ...]
        for i, time in enumerate(self.times(self.k)):
            t = xp.full_like(eps[:, 0, 0, 0, 0], time)
            if i > 0:
                z = diffuse(ops.stop_gradient(xs[-1]), eps[:, i, ...], self.clock(t))
            xs.append(nets["student"](z, t, condition))
        return flatten_steps(xp.stack(xs, axis=1))

    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: None, ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """The loss of this turn; the head takes noised data for real and noised x~ for fake."""
        s, eps_s, eps_data = (flatten_steps(draws[name]) for name in ("s", "eps_s", "eps_data"))
        condition, level = each(lambda x: each_step(x, self.k), batch["condition"]), self.clock(s)
        x = self.simulate(nets, draws["eps_t"], batch["condition"], ops)
        if turn == "auxiliary":
            x = ops.stop_gradient(x)
        z_s = diffuse(x, eps_s, level)
        g_phi, fake = nets["auxiliary"](z_s, s, condition, features=True)
        if turn == "auxiliary":
            z_data = diffuse(each_step(batch["images"], self.k), eps_data, level)
            _, real = nets["auxiliary"](z_data, s, condition, features=True)
            adversarial = (softplus(nets["head"](fake[-1])) + softplus(-nets["head"](real[-1]))).mean()
            loss = self.denoising_loss(x, g_phi, s) + self.options.head_weight * adversarial
            return loss, {"adversarial": adversarial}
        adversarial = softplus(-nets["head"](fake[-1])).mean()
        loss, gap = self.distribution_loss(nets, x, z_s, g_phi, s, condition, ops)
        loss = loss + self.options.generator_weight * adversarial
        return loss, {"moment_gap": gap, "adversarial": adversarial}
