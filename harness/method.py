"""The method contract: what a distillation method (or the teacher's training) says of itself.

A method is written once, as pure functions over the array API. All of its randomness is in `draw`, so that `loss` is a
pure function of the networks, the batch and the draws: parity, gradient and resume tests need nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict

from harness.conditions import Condition, unconditional
from harness.diffusion import WEIGHTS, Array, Clock, guide, x_from_v
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from harness.samplers import equal_times

Draws = dict[str, np.ndarray]
Batch = Mapping[str, Any]
"""Arrays by name; `condition` is a `Condition`."""


class Options(BaseModel):
    """Base of a method's own options; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _known_weight(name: str) -> str:
    if name not in WEIGHTS:
        raise ValueError(f"unknown weight {name!r}; choose one of {', '.join(WEIGHTS)}")
    return name


WeightName = Annotated[str, AfterValidator(_known_weight)]
"""The name of a weight w(s), for a method's options."""


@dataclass(frozen=True)
class Fresh:
    """A denoiser that starts from the initial weights of the run's seed."""


Source = Literal["teacher", "parent"]


@dataclass(frozen=True)
class CopyOf:
    """A network that starts as a copy of another run's result: the teacher's, or the parent's (`Method.parent`).

    Where no turn trains it, it is the teacher that is distilled, and is evaluated with the run's guidance.
    """

    source: Source = "teacher"


@dataclass(frozen=True)
class Average:
    """An exponential moving average of another network, which it follows and never changes."""

    of: str
    decay: Callable[[int], float]


@dataclass(frozen=True)
class Head:
    """A small network of the method's own: `apply(params, *arrays)`, pure and over the array API.

    `shapes` names its parameters; matrices (out, in) start Glorot-uniform from the run's seed, vectors at zero.
    """

    shapes: Mapping[str, tuple[int, ...]]
    apply: Callable[..., Array]


@dataclass(frozen=True)
class Preconditioner:
    """A constant: Adam's 1 / (sqrt(v) + eps) at the end of the teacher's training, for each of its parameters."""


@dataclass(frozen=True)
class Pretrained:
    """A constant network of published weights: `apply(params, *arguments)`, pure and over the array API and `Ops`.

    `files` finds the user's copies, and `read` makes parameters by name of them. UserError: one is missing, or wrong.
    """

    files: Callable[[], list[Path]]
    read: Callable[[list[Path]], dict[str, np.ndarray]]
    apply: Callable[..., Array]


Start = Fresh | CopyOf | Average | Head | Preconditioner | Pretrained


@dataclass(frozen=True)
class Turn:
    """One kind of update: the networks it trains together, with one optimiser, and the network calls that it costs.

    Each call is of one batch through one denoiser; a `Head`, which is small, and a `Pretrained` are not counted.
    """

    trains: tuple[str, ...]
    forward: int = 0
    """Calls without gradient."""
    gradient: int = 1
    """Calls differentiated in the parameters."""
    input_gradient: int = 0
    """Calls differentiated in the input alone, the parameters constant."""
    jvp: int = 0
    """Calls with a forward-mode derivative along the parameters."""
    guided: int = 0
    """Further calls without gradient where the teacher is guided: one for each of its evaluations."""
    sources: tuple[str, ...] = ()
    """Which of the method's sources its batches hold; all of them unless said."""


class Ops(Protocol):
    """What a loss may ask of a backend beyond the array API."""

    def stop_gradient(self, x: Array) -> Array:
        """`x` as a constant."""

    def conv(self, x: Array, weight: Array, bias: Array) -> Array:
        """Cross-correlation of x (batch, in, height, width) with weight (out, in, 3, 3), zero-padded to its size."""

    def grad(self, function: Callable[[Any], Array], params: Any) -> Any:
        """The gradient of a scalar function at `params`, a dict of arrays; itself a constant."""

    def jvp(self, function: Callable[[Any], Array], params: Any, tangents: Any) -> tuple[Array, Array]:
        """`function` at `params`, and its derivative there along `tangents`."""


@dataclass(frozen=True)
class Denoiser:
    """x_hat = denoiser(z, t, condition): a v-predicting network wrapped to predict x, with guidance where it has any.

    z (batch, channels, height, width) variance-preserving, t (batch,) in [0, 1], a condition for each. With
    `features=True` the network's intermediate features, those of the conditional call, are returned as well.
    """

    apply: Callable[..., Any]
    params: Any
    clock: Clock
    num_classes: int
    guidance: float = 0.0
    """w of g_c + w (g_c - g_u) (Ho & Salimans 2022); 0 is none."""

    def __call__(self, z: Array, t: Array, condition: Condition, *, features: bool = False) -> Any:
        """The denoised x_hat, like z."""
        v, intermediate = self.apply(self.params, z, t, condition)
        x = self.guided(x_from_v(z, v, self.clock(t)), z, t, condition)
        return (x, intermediate) if features else x

    def guided(self, conditional: Array, z: Array, t: Array, condition: Condition) -> Array:
        """What guidance makes of the network's own x_hat; that itself where there is none."""
        if self.guidance == 0:
            return conditional
        v, _ = self.apply(self.params, z, t, unconditional(condition, self.num_classes))
        return guide(conditional, x_from_v(z, v, self.clock(t)), self.guidance)

    def at(self, params: Any) -> "Denoiser":
        """The network itself, without guidance, with these parameters (for gradients and JVPs in the parameters)."""
        return replace(self, params=params, guidance=0.0)

    def straight_through(self, params: Any, z: Array, t: Array, condition: Condition, ops: Ops) -> Array:
        """The x_hat of a call, with the gradient in `params` of the network itself (the paper's for Algorithm 3)."""
        plain = self.at(params)(z, t, condition)
        if self.guidance == 0:
            return plain
        return plain + ops.stop_gradient(self.guided(plain, z, t, condition) - plain)

    def constant(self, ops: Ops) -> "Denoiser":
        """The same network with no gradient in its parameters; a trained network run so keeps no activations."""
        return replace(self, params={name: ops.stop_gradient(value) for name, value in self.params.items()})


Networks = Mapping[str, Any]
"""By name: a Denoiser, the function of a Head or a Pretrained, or a Preconditioner's arrays by parameter name."""


def bind(
    method: "Method", starts: Mapping[str, Start], apply: Callable[..., Any], params: Mapping[str, Any]
) -> Networks:
    """What a method's loss sees of the parameters of every network and average; `starts` are its `networks()`."""
    weights = guidances(method, starts)

    def one(name: str) -> Any:
        start = starts[name]
        while isinstance(start, Average):
            start = starts[start.of]
        if isinstance(start, Head | Pretrained):
            return partial(start.apply, params[name])
        if isinstance(start, Preconditioner):
            return params[name]
        return Denoiser(apply, params[name], method.clock, method.num_classes, weights.get(name, 0.0))

    return {name: one(name) for name in params}


def guidances(method: "Method", starts: Mapping[str, Start]) -> dict[str, float]:
    """The guidance of each network that is distilled: of the copies that no turn trains."""
    trained = {name for turn in method.turns.values() for name in turn.trains}
    distilled = {name: start for name, start in starts.items() if isinstance(start, CopyOf) and name not in trained}
    return {name: method.guidance.get(start.source, 0.0) for name, start in distilled.items()}


class Method(ABC):
    """Base class of every method. Subclasses set the class attributes and say what differs from the defaults.

    A method object belongs to one student: `k` is the number of steps that the student is trained for, `guidance` the
    weight with which each source is guided where it is distilled.
    """

    id: ClassVar[str]
    """As in tables, paths and the command line, for example `moment-matching/alternating`."""
    sampler: ClassVar[str]
    """The sampler family that the student is trained for: a key of `samplers.FAMILIES`."""
    Options: ClassVar[type[Options]] = Options
    result: ClassVar[str] = "student"
    """The network that the run is for."""
    second_moments_of: ClassVar[str | None] = None
    """The trained network whose Adam second moments are stored beside the result."""
    sources: ClassVar[Mapping[str, int]] = {"data": 1}
    """Examples of each source for one sample of the batch. One: arrays (batch, ...); n: arrays (batch, n, ...)."""

    def __init__(
        self,
        k: int,
        updates: int,
        clock: Clock,
        options: Any,
        spec: TransformerSpec,
        guidance: Mapping[str, float] | None = None,
    ) -> None:
        self.k, self.updates, self.clock, self.options, self.spec = k, updates, clock, options, spec
        self.shape, self.num_classes = (spec.channels, spec.size, spec.size), spec.num_classes
        self.guidance: Mapping[str, float] = guidance or {}

    @property
    @abstractmethod
    def turns(self) -> Mapping[str, Turn]:
        """Every turn by name; a class attribute serves where the passes do not depend on k."""

    def passes(self, turn: str) -> int:
        """The cost of an update for each sample, in forward passes of an image.

        A backward pass counts 2, one in the inputs alone 1, a tangent along the parameters 2.
        """
        calls = self.turns[turn]
        guided = calls.guided if any(guidances(self, self.networks()).values()) else 0
        return calls.forward + guided + 3 * calls.gradient + 2 * calls.input_gradient + 3 * calls.jvp

    @classmethod
    def parent(cls, student: str, steps: list[int]) -> str | None:
        """The student that must be trained before this one, for `CopyOf("parent")`; None: the teacher is the parent."""
        return None

    @classmethod
    def students(cls, steps: list[int]) -> dict[str, list[int]]:
        """The students to train for these step counts: name -> the step counts it is sampled at."""
        return {f"k{k}": [k] for k in steps}

    @classmethod
    def family(cls, options: Any) -> str:
        """The sampler family of students trained with these options."""
        return cls.sampler

    @classmethod
    def times(cls, k: int) -> list[float]:
        """The times, from 1 down, at which a k-step sample evaluates the student."""
        return equal_times(k)

    @abstractmethod
    def networks(self) -> dict[str, Start]:
        """Every network of the run, and where it starts."""

    def turn(self, step: int) -> str:
        """The turn of update number `step`, counted from 0."""
        return next(iter(self.turns))

    @abstractmethod
    def draw(self, noise: Noise, step: int, start: int, count: int) -> Draws:
        """All random arrays of one update for samples start .. start + count - 1 of the batch, each (count, ...)."""

    def reduce(self, turn: str, nets: Networks, batch: Batch, draws: Batch, ops: Ops) -> Any:
        """Arrays averaged over the whole batch, constants in `loss`; most methods have none."""
        return None

    @abstractmethod
    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: Any, ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """The scalar loss of this turn's networks, and scalars to log."""
