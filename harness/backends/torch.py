"""The PyTorch backend: eager execution, autograd, torch.optim.Adam."""

import resource
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.backends.base import Adam, Backend, Learner, Update, Weights
from harness.diffusion import Array, Clock
from harness.method import Batch, Denoiser, Method
from harness.networks.torch import Transformer
from harness.networks.transformer import TransformerSpec


class TorchOps:
    """Gradient operations inside a loss."""

    def stop_gradient(self, x: Tensor) -> Tensor:
        """`x` as a constant."""
        return x.detach()

    def grad(self, function: Callable[[Any], Tensor], params: Any) -> Any:
        """The gradient of a scalar function at `params`."""
        return torch.func.grad(function)(params)

    def jvp(self, function: Callable[[Any], Tensor], params: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        """`function` at `params`, and its derivative there along `tangents`, by forward mode."""
        with warnings.catch_warnings():  # PyTorch's first use of forward mode warns of its own torch.jit.script
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            result = torch.func.jvp(function, (params,), (tangents,))
        return result[0], result[1]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _apply(spec: TransformerSpec) -> Callable[..., Any]:
    """The network as a function of its parameters; the module only lends its code."""
    module = Transformer(spec).to(_device())
    buffers = dict(module.named_buffers())

    def apply(params: Mapping[str, Tensor], z: Tensor, t: Tensor, labels: Tensor) -> Any:
        return torch.func.functional_call(module, {**params, **buffers}, (z, t, labels), strict=True)

    return apply


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)).to(_device()) for name, array in arrays.items()}


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy().copy()


class TorchLearner(Learner):
    """Parameters as leaf tensors; only those that a turn trains require gradients during it."""

    def start(self, weights: Mapping[str, Weights]) -> None:
        """Place the networks and make one optimiser for each turn."""
        self.apply = _apply(self.spec)
        self.params = {name: _tensors(weights[name]) for name in self.names}
        self.averaged = {name: _tensors(weights[name]) for name in self.averages}
        self.optimisers = {}
        for turn, spec in self.method.turns.items():
            trained = [self.params[name][key] for name in spec.trains for key in sorted(self.params[name])]
            self.optimisers[turn] = torch.optim.Adam(
                trained, lr=0.0, betas=(self.adam.beta1, self.adam.beta2), eps=self.adam.eps, foreach=True
            )

    def _backward(self, turn: str, batch: Batch, draws: Batch) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        trains = self.method.turns[turn].trains
        leaves = [self.params[name][key] for name in trains for key in sorted(self.params[name])]
        for leaf in leaves:
            leaf.requires_grad_(True)
        nets, arrays = self.nets({**self.params, **self.averaged}), (_tensors(batch), _tensors(draws))
        with torch.no_grad():
            reduced = self.method.reduce(turn, nets, *arrays, TorchOps())
        loss, logs = self.method.loss(turn, nets, *arrays, reduced, TorchOps())
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        for leaf in leaves:
            leaf.requires_grad_(False)
        return loss.detach(), logs, list(grads)

    def update(
        self, turn: str, batch: Batch, draws: Batch, learning_rate: float, decays: Mapping[str, float]
    ) -> Update:
        """One optimiser step, with the gradient scaled to the bound on its norm."""
        loss, logs, grads = self._backward(turn, batch, draws)
        trains, norms, start = self.method.turns[turn].trains, {}, 0
        for name in trains:
            end = start + len(self.params[name])
            norms[name] = torch.nn.utils.get_total_norm(grads[start:end])
            start = end
        total = torch.stack(list(norms.values())).square().sum().sqrt()
        torch._foreach_mul_(grads, torch.clamp(self.adam.clip / total, max=1.0))
        optimiser = self.optimisers[turn]
        for leaf, grad in zip(optimiser.param_groups[0]["params"], grads, strict=True):
            leaf.grad = grad
        optimiser.param_groups[0]["lr"] = learning_rate
        optimiser.step()
        for name, average in self.averages.items():
            if average.of in trains:
                keys = sorted(self.params[average.of])
                live = [self.params[average.of][key] for key in keys]
                torch._foreach_lerp_([self.averaged[name][key] for key in keys], live, 1 - decays[name])
        return Update(
            loss.item(), {n: v.item() for n, v in norms.items()}, {n: v.detach().item() for n, v in logs.items()}
        )

    def gradients(self, turn: str, batch: Batch, draws: Batch) -> tuple[float, dict[str, Weights]]:
        """The loss and its unclipped gradient in every trained network."""
        loss, _, grads = self._backward(turn, batch, draws)
        names = [(name, key) for name in self.method.turns[turn].trains for key in sorted(self.params[name])]
        out: dict[str, Weights] = {name: {} for name in self.method.turns[turn].trains}
        for (name, key), grad in zip(names, grads, strict=True):
            out[name][key] = _array(grad)
        return loss.item(), out

    def weights(self, name: str) -> Weights:
        """The current parameters of one network or average."""
        params = self.averaged[name] if name in self.averages else self.params[name]
        return {key: _array(value) for key, value in params.items()}

    def _moments(self, turn: str) -> list[tuple[str, Tensor]]:
        """The leaves of a turn's optimiser with their names, in its order."""
        names = [f"{n}/{key}" for n in self.method.turns[turn].trains for key in sorted(self.params[n])]
        return list(zip(names, self.optimisers[turn].param_groups[0]["params"], strict=True))

    def state(self) -> dict[str, np.ndarray]:
        """Parameters, averages and Adam's moments."""
        state: dict[str, np.ndarray] = {}
        for name, params in {**self.params, **self.averaged}.items():
            state |= {f"network/{name}/{key}": _array(value) for key, value in params.items()}
        for turn, optimiser in self.optimisers.items():
            for name, leaf in self._moments(turn):
                moments = optimiser.state.get(leaf)
                if moments:
                    state[f"optimiser/{turn}/mu/{name}"] = _array(moments["exp_avg"])
                    state[f"optimiser/{turn}/nu/{name}"] = _array(moments["exp_avg_sq"])
                    state[f"optimiser/{turn}/count"] = _array(moments["step"])
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""
        tensors = _tensors(state)
        for name, params in {**self.params, **self.averaged}.items():
            for key, value in params.items():
                value.copy_(tensors[f"network/{name}/{key}"])
        for turn, optimiser in self.optimisers.items():
            optimiser.state.clear()  # a turn that the state has not taken yet has no moments there
            if f"optimiser/{turn}/count" not in tensors:
                continue
            for name, leaf in self._moments(turn):
                optimiser.state[leaf] = {
                    "step": tensors[f"optimiser/{turn}/count"].cpu().clone(),
                    "exp_avg": tensors[f"optimiser/{turn}/mu/{name}"].clone(),
                    "exp_avg_sq": tensors[f"optimiser/{turn}/nu/{name}"].clone(),
                }


class TorchBackend(Backend):
    """PyTorch on the first GPU, or on the CPU."""

    name = "torch"

    def learner(self, method: Method, spec: TransformerSpec, weights: Mapping[str, Weights], adam: Adam) -> Learner:
        """The networks of a training run, on the device."""
        return TorchLearner(method, spec, weights, adam)

    def denoiser_step(
        self, spec: TransformerSpec, weights: Weights, step: Callable[..., Any], clock: Clock
    ) -> Callable[..., Any]:
        """`step(denoiser, *arrays)` without gradients."""
        denoiser = Denoiser(_apply(spec), _tensors(weights), clock)

        def run(*arrays: Any) -> Any:
            with torch.no_grad():
                return step(denoiser, *(torch.as_tensor(array, device=_device()) for array in arrays))

        return run

    def to_numpy(self, x: Array) -> np.ndarray:
        """A tensor as a NumPy array."""
        return _array(x)

    def peak_memory_mb(self) -> float:
        """CUDA's peak allocation, or the peak resident size of the process."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
