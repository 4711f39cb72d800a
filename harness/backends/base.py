"""The backend contract: automatic differentiation, optimiser, compilation and devices; nothing that both can share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from harness.diffusion import Array, Clock
from harness.method import Average, Batch, Method, Networks, Pretrained, bind
from harness.networks.transformer import TransformerSpec

Weights = dict[str, np.ndarray]
"""A network's parameters by name, as NumPy arrays."""


@dataclass(frozen=True)
class Adam:
    """Adam's constants, and the bound on the gradient norm of all networks that a turn trains."""

    beta1: float
    beta2: float
    eps: float
    clip: float


@dataclass(frozen=True)
class Update:
    """What an update measured: loss, gradient norm of each trained network before clipping, and the method's logs."""

    loss: float
    gradient_norm: dict[str, float]
    logs: dict[str, float]


class Learner(ABC):
    """The live networks of one training run with their optimisers and averages."""

    apply: Callable[..., Any]
    """The denoisers' network as a function (params, z, t, condition) -> (v, features)."""

    moving: list[str]
    """The networks that the run changes: those that a turn trains, and averages."""

    def __init__(self, method: Method, spec: TransformerSpec, weights: Mapping[str, Weights], adam: Adam) -> None:
        self.method, self.spec, self.adam = method, spec, adam
        networks = method.networks()
        self.starts = networks
        self.averages = {name: start for name, start in networks.items() if isinstance(start, Average)}
        self.names = [name for name in networks if name not in self.averages]
        trained = {name for turn in method.turns.values() for name in turn.trains}
        self.moving = [name for name in networks if name in trained or name in self.averages]
        self.stored = [name for name, start in networks.items() if not isinstance(start, Pretrained)]
        self.start(weights)

    def nets(self, params: Mapping[str, Any]) -> Networks:
        """What reduce and loss see of `params`, the parameters of every network and average by name."""
        return bind(self.method, self.starts, self.apply, params)

    @abstractmethod
    def start(self, weights: Mapping[str, Weights]) -> None:
        """Place the networks on the device and set up one optimiser for each turn."""

    @abstractmethod
    def launch(
        self, turn: str, batch: Batch, draws: Batch, learning_rate: float, decays: Mapping[str, float]
    ) -> Callable[[], Update]:
        """Begin one optimiser step of this turn's networks, then of the averages that follow them.

        Where the device works by itself, this returns at once; the function that it returns waits for the measurements.
        """

    def update(
        self, turn: str, batch: Batch, draws: Batch, learning_rate: float, decays: Mapping[str, float]
    ) -> Update:
        """`launch`, and wait."""
        return self.launch(turn, batch, draws, learning_rate, decays)()

    @abstractmethod
    def gradients(self, turn: str, batch: Batch, draws: Batch) -> tuple[float, dict[str, Weights]]:
        """The loss and its unclipped gradient in every trained network."""

    @abstractmethod
    def weights(self, name: str) -> Weights:
        """The current parameters of one network or average."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs to go on exactly: parameters, but published ones, averages, Adam's moments.

        Keys: `network/<name>/<parameter>` and `optimiser/<turn>/{mu,nu}/<name>/<parameter>`, `optimiser/<turn>/count`.
        """

    @abstractmethod
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""

    def second_moments(self, name: str) -> Weights:
        """Adam's v of the gradients of one trained network, as clipped; the bias at zero is corrected."""
        state = self.state()
        (turn,) = (turn for turn, spec in self.method.turns.items() if name in spec.trains)
        correction = np.float32(1 - self.adam.beta2 ** int(state[f"optimiser/{turn}/count"]))
        prefix = f"optimiser/{turn}/nu/{name}/"
        return {key.removeprefix(prefix): v / correction for key, v in state.items() if key.startswith(prefix)}


class Backend(ABC):
    """One framework."""

    name: ClassVar[str]

    @abstractmethod
    def learner(self, method: Method, spec: TransformerSpec, weights: Mapping[str, Weights], adam: Adam) -> Learner:
        """The networks of a training run, on the device."""

    @abstractmethod
    def denoiser_step(
        self, spec: TransformerSpec, weights: Weights, step: Callable[..., Any], clock: Clock, guidance: float = 0.0
    ) -> Callable[..., Any]:
        """Compile a sampling step `step(denoiser, *arrays)` of one network, without gradients, for NumPy arrays.

        Its denoiser is guided. Among the arrays there may be conditions.
        """

    @abstractmethod
    def to_numpy(self, x: Array) -> np.ndarray:
        """A device array as a NumPy array on the host."""

    @abstractmethod
    def peak_memory_mb(self) -> float:
        """The peak memory of this process so far, in MiB: the device's, or the process's own on a CPU."""
