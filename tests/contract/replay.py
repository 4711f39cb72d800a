"""A loss as a function of parameters alone, in float64, with every stopped gradient held at its recorded value.

Finite differences of a loss see through `stop_gradient`; automatic differentiation does not. Once the values that pass
through it are recorded at the base point and replayed elsewhere, both must agree.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from harness.backends.base import Weights
from harness.backends.torch import TorchOps
from harness.method import Batch, Method, Networks, bind
from harness.networks.torch import Transformer
from harness.networks.transformer import TransformerSpec


class ReplayOps(TorchOps):
    """Records what passes through `stop_gradient`, in order; after `rewind`, gives those values back instead."""

    def __init__(self) -> None:
        self.recorded: list[Tensor] = []
        self.replayed: int | None = None

    def rewind(self) -> None:
        """Replay from the first recorded value."""
        self.replayed = 0

    def stop_gradient(self, x: Tensor) -> Tensor:
        """`x` as a constant: its value while recording, the recorded value while replaying."""
        if self.replayed is None:
            self.recorded.append(x.detach().clone())
            return self.recorded[-1]
        self.replayed += 1
        return self.recorded[self.replayed - 1]


class ReplayedLoss:
    """The loss of one turn with the given batch and draws; `gradient` records at the base point, `difference` replays.

    What the method reduces over the batch is a constant, as it is for the backends.
    """

    def __init__(
        self,
        method: Method,
        turn: str,
        spec: TransformerSpec,
        weights: Mapping[str, Weights],
        batch: Batch,
        draws: Batch,
    ) -> None:
        self.method, self.turn, self.ops = method, turn, ReplayOps()
        self.module = Transformer(spec).double()
        self.params = {name: _doubles(values) for name, values in weights.items()}
        self.batch, self.draws = _doubles(batch), _doubles(draws)
        with torch.no_grad():
            self.reduced = method.reduce(turn, self._nets(self.params), self.batch, self.draws, TorchOps())

    def _apply(self, params: Mapping[str, Tensor], *inputs: Any) -> Any:
        return torch.func.functional_call(self.module, dict(params), inputs)

    def _nets(self, params: Mapping[str, Mapping[str, Tensor]]) -> Networks:
        return bind(self.method, self.method.networks(), self._apply, params)

    def _loss(self, params: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        nets = self._nets(params)
        loss, _ = self.method.loss(self.turn, nets, self.batch, self.draws, self.reduced, self.ops)
        assert loss.dtype == torch.float64, "something in the loss is rounded to float32"
        return loss

    def gradient(self) -> dict[tuple[str, str], Tensor]:
        """The gradient in each tensor (network, parameter) that the turn trains, by automatic differentiation."""
        leaves = {
            (name, key): value.requires_grad_()
            for name in self.method.turns[self.turn].trains
            for key, value in self.params[name].items()
        }
        grads = torch.autograd.grad(self._loss(self.params), list(leaves.values()))
        for leaf in leaves.values():
            leaf.requires_grad_(False)
        return dict(zip(leaves, grads, strict=True))

    def difference(self, tensor: tuple[str, str], direction: Tensor, step: float) -> float:
        """The derivative of the loss along a direction in one tensor, by central differences."""
        name, key = tensor
        values = []
        for sign in (1, -1):
            moved = self.params[name] | {key: self.params[name][key] + sign * step * direction}
            self.ops.rewind()
            values.append(self._loss(self.params | {name: moved}).item())
            assert self.ops.replayed == len(self.ops.recorded)
        return (values[0] - values[1]) / (2 * step)


def _doubles(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors in float64, integers and booleans as they are."""

    def double(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.array(array))
        return tensor.double() if tensor.is_floating_point() else tensor

    found: dict[str, Any] = tree_map(double, dict(arrays))
    return found
