"""Consistency models: distillation (Song et al. 2023) and training (Song & Dhariwal 2023), one student for every k.

The consistency function goes with DDIM, and the network's x_hat, to the end of its segment of the clock, which is t = 0
where the clock is one segment: f(z_t, t) = (sigma_0 / sigma_t) z_t + alpha_0 (1 - sigma_0 alpha_t / (alpha_0 sigma_t))
x_hat(z_t, t). At t = 0 it is z exactly, which is the boundary condition; the papers' c_skip and c_out are other
coefficients with that end. As f is linear in x_hat, f(z_t, t) = f(z_m, m) says that x_hat(z_t, t) is a weighted average
of the hop's x and of x_hat(z_m, m). The losses here compare these two; the samplers use x_hat.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace
from pydantic import Field, model_validator

from baselines.progressive import merged_prediction
from harness.diffusion import (
    Array,
    Clock,
    Level,
    addim,
    ddim,
    diffuse,
    per_sample,
    pseudo_huber,
    squared_error,
    weight,
)
from harness.method import (
    Average,
    Batch,
    CopyOf,
    Draws,
    Fresh,
    Method,
    Networks,
    Ops,
    Options,
    Start,
    Turn,
    WeightName,
)
from harness.networks.lpips import LPIPS
from harness.noise import Noise


class Consistency(Method):
    """What distillation and training share: a grid of times, one hop t -> m, and the loss against the target at m."""

    sampler = "renoise"

    @property
    def segments(self) -> int:
        """Equal parts of the clock; the consistency function ends where the part of its time ends."""
        return 1

    @classmethod
    def students(cls, steps: list[int]) -> dict[str, list[int]]:
        """One for all step counts."""
        return {"all": steps}

    @abstractmethod
    def intervals(self, step: int) -> int:
        """Hops of each segment's grid at this update."""

    def draw_interval(self, noise: Noise, step: int, start: int, count: int) -> np.ndarray:
        """The number, from 0, of each sample's hop in its segment: int64 (count,)."""
        u = noise.uniform("consistency/interval", step, start, count)
        return (u * self.intervals(step)).astype(int)

    def draw(self, noise: Noise, step: int, start: int, count: int) -> Draws:
        """A hop t -> m of the grid, the end of its segment, and the noise of z_t."""
        n, intervals = self.draw_interval(noise, step, start, count), self.intervals(step)
        i = (noise.uniform("consistency/segment", step, start, count) * self.segments).astype(int)
        times = {"t": i + (n + 1) / intervals, "m": i + n / intervals, "end": i}
        eps = noise.normal("consistency/eps", step, start, count, self.shape)
        return {name: (value / self.segments).astype("float32") for name, value in times.items()} | {"eps": eps}

    @abstractmethod
    def hop(self, z_t: Array, nets: Networks, batch: Batch, draws: Batch) -> Array:
        """The x with which DDIM takes z_t from t to m."""

    def target(self, nets: Networks, ops: Ops) -> Callable[..., Array]:
        """The denoiser of the target: the student itself, as a constant."""
        return nets["student"].constant(ops)

    @abstractmethod
    def distance(self, x: Array, target: Array, nets: Networks, batch: Batch, t: Level, m: Level, ops: Ops) -> Array:
        """The weighted distance (batch,) of x_hat from its target."""

    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: None, ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """The mean distance; logged is the squared error of f(z_t, t) against f(z_m, m), for any weight and metric."""
        condition = batch["condition"]
        t, m, end = (self.clock(draws[name]) for name in ("t", "m", "end"))
        z_t = diffuse(batch["images"], draws["eps"], t)
        x_t = self.hop(z_t, nets, batch, draws)
        z_m = ddim(z_t, x_t, t, m)
        x_m = self.target(nets, ops)(z_m, draws["m"], condition)
        x = nets["student"](z_t, draws["t"], condition)
        gap = squared_error(consistency_function(z_t, x, t, end), consistency_function(z_m, x_m, m, end))
        target = merged_prediction(x_t, x_m, t, m, end)
        return self.distance(x, target, nets, batch, t, m, ops).mean(), {"consistency_gap": gap.mean()}


def consistency_function(z_t: Array, x: Array, t: Level, end: Level) -> Array:
    """f(z_t, t) of a network that predicts x at z_t: DDIM's transition to level `end`, exactly z_t where t = end."""
    share = -array_namespace(t.logsnr).expm1((t.logsnr - end.logsnr) / 2)
    return per_sample(end.sigma / t.sigma, x) * z_t + per_sample(end.alpha * share, x) * x


def huber_constant(shape: tuple[int, ...]) -> float:
    """c of the pseudo-Huber metric for images of this shape (Song & Dhariwal 2023, section 3.3)."""
    return 0.00054 * float(np.prod(shape)) ** 0.5


Hop = Literal["ddim", "heun", "addim"]


class DistillationOptions(Options):
    """What Song et al. and Heek et al. vary."""

    weight: WeightName = Field("truncated-snr", description="weight w(t) of the distance in x, by name")
    metric: Literal["l2", "pseudo-huber", "lpips"] = Field("l2", description="squared error, its smooth root, or LPIPS")
    hop: Hop = Field("heun", description="the teacher's solver from t to m")
    intervals: int = Field(16, ge=1, description="hops of the grid, equal on the clock from 1 to 0")
    target_decay: float = Field(0.0, ge=0, lt=1, description="decay of the target's average; 0: the student itself")


class Distillation(Consistency):
    """Consistency with a teacher that makes the hop."""

    @property
    def turns(self) -> Mapping[str, Turn]:
        """The teacher's hop, of two calls for Heun's method, and the target."""
        hops = 2 if self.options.hop == "heun" else 1
        return {"student": Turn(("student",), forward=1 + hops, guided=hops)}

    def networks(self) -> dict[str, Start]:
        """Student and target start from the teacher."""
        networks: dict[str, Start] = {"teacher": CopyOf(), "student": CopyOf()}
        if self.options.metric == "lpips":
            networks["lpips"] = LPIPS
        decay = self.options.target_decay
        return networks | ({"target": Average("student", lambda step: decay)} if decay > 0 else {})

    def target(self, nets: Networks, ops: Ops) -> Callable[..., Array]:
        """The student's average where there is one."""
        return nets["target"] if "target" in nets else super().target(nets, ops)

    def hop(self, z_t: Array, nets: Networks, batch: Batch, draws: Batch) -> Array:
        """The teacher's x_hat, corrected for Heun's method in sigma / alpha (Karras et al. 2022), or for aDDIM.

        aDDIM's variance is that of the prediction without guidance (Heek et al. 2024).
        """
        condition, teacher, t, m = batch["condition"], nets["teacher"], self.clock(draws["t"]), self.clock(draws["m"])
        plain = teacher.at(teacher.params)(z_t, draws["t"], condition)
        x = teacher.guided(plain, z_t, draws["t"], condition)
        if self.options.hop == "heun":
            x_m = teacher(ddim(z_t, x, t, m), draws["m"], condition)
            return x + per_sample(array_namespace(x).exp((m.logsnr - t.logsnr) / 2) / 2, x) * (x_m - x)
        if self.options.hop == "addim":
            return addim(z_t, x, t, m, 0.75 * squared_error(batch["images"], plain) / float(np.prod(self.shape)))
        return x

    def distance(self, x: Array, target: Array, nets: Networks, batch: Batch, t: Level, m: Level, ops: Ops) -> Array:
        """w(t) d(x, target), where d is a sum over pixels; LPIPS, which is a mean, times their number."""
        if self.options.metric == "l2":
            error = squared_error(x, target)
        elif self.options.metric == "lpips":
            error = float(np.prod(self.shape)) * nets["lpips"](x, target, ops)
        else:
            error = pseudo_huber(x, target, huber_constant(self.shape))
        return weight(self.options.weight, t, batch["images"], target) * error


class ConsistencyDistillation(Distillation):
    """Song et al. 2023, Algorithm 2, with `intervals` = N - 1 equal on the clock: on Karras's, the paper's grid.

    The paper weights all distances of f alike, nearly the weight "flat" here. With v-prediction that leaves too much of
    the error at low noise, so that the default is progressive distillation's weight. The learning rate's decay to zero
    serves in the place of the paper's slow average of the student.
    """

    id = "consistency-distillation"
    Options = DistillationOptions

    def intervals(self, step: int) -> int:
        """The same at every update."""
        return self.options.intervals


def require_growth(options: Any) -> Any:
    """Refuse a grid that becomes coarser in training."""
    if options.final_intervals < options.intervals:
        raise ValueError(f"final_intervals {options.final_intervals} is below intervals {options.intervals}")
    return options


class ConsistencyTrainingOptions(Options):
    """The schedule of Song & Dhariwal 2023, section 3.4."""

    intervals: int = Field(10, ge=1, description="s_0, hops of the first grid")
    final_intervals: int = Field(1280, ge=1, description="s_1, hops of the last grid, reached by doubling")

    _growing = model_validator(mode="after")(require_growth)


@lru_cache(maxsize=16)
def cumulative(clock: Clock, intervals: int) -> np.ndarray:
    """P(log(sigma / alpha) below that of each of the intervals + 1 grid times), for N(-1.1, 2^2) (section 3.5)."""
    log_sigma = -clock(np.arange(intervals + 1) / intervals).logsnr / 2
    return np.array([NormalDist(-1.1, 2.0).cdf(value) for value in log_sigma])


class ConsistencyTraining(Consistency):
    """Improved consistency training (Song & Dhariwal 2023): no teacher, the data and its noise make the hop.

    Levels are drawn from the discretised log-normal, on grids equal on the profile's clock, of which the Karras clock's
    are the paper's; the number of hops doubles at equal intervals of training.
    """

    id = "consistency-training"
    Options = ConsistencyTrainingOptions
    turns = {"student": Turn(("student",), forward=1)}

    def networks(self) -> dict[str, Start]:
        """The student alone, from its initial weights."""
        return {"student": Fresh()}

    def intervals(self, step: int) -> int:
        """min(s_0 2^(step // K'), s_1) with K' updates in each of the log2(s_1 / s_0) + 1 stages."""
        first, last = self.options.intervals, self.options.final_intervals
        stage = max(1, int(self.updates / (math.log2(last // first) + 1)))
        return min(first << (step // stage), last)

    def draw_interval(self, noise: Noise, step: int, start: int, count: int) -> np.ndarray:
        """Hop n with the log-normal's probability of the levels between its ends."""
        edges = cumulative(self.clock, self.intervals(step))
        u = noise.uniform("consistency/interval", step, start, count).astype(float)
        return np.searchsorted(edges[1:-1], edges[0] + u * (edges[-1] - edges[0]), side="right")

    def hop(self, z_t: Array, nets: Networks, batch: Batch, draws: Batch) -> Array:
        """The data itself, so that z_m has the same noise."""
        return batch["images"]

    def distance(self, x: Array, target: Array, nets: Networks, batch: Batch, t: Level, m: Level, ops: Ops) -> Array:
        """Pseudo-Huber, over the difference of the two levels' sigma / alpha (section 3.1)."""
        xp = array_namespace(t.logsnr)
        step = -xp.expm1((t.logsnr - m.logsnr) / 2) * xp.exp(-t.logsnr / 2)
        return pseudo_huber(x, target, huber_constant(self.shape)) / step
