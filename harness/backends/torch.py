"""The PyTorch backend: eager execution, autograd, torch.optim.Adam."""

import math
import resource
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from harness.backends.base import Adam, Backend, Learner, Update, Weights
from harness.conditions import Condition
from harness.diffusion import Array, Clock
from harness.method import Batch, Denoiser, Method
from harness.networks.torch import Transformer
from harness.networks.transformer import TransformerSpec


class TorchOps:
    """Gradient operations inside a loss."""

    def stop_gradient(self, x: Tensor) -> Tensor:
        """`x` as a constant."""
        return x.detach()

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Cross-correlation with zero padding that keeps the size."""
        return torch.nn.functional.conv2d(x, weight, bias, padding="same")

    def grad(self, function: Callable[[Any], Tensor], params: Any) -> Any:
        """The gradient of a scalar function at `params`."""
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():  # plain autograd: torch.func.grad takes half as long again
            gradients = torch.autograd.grad(function(leaves), list(leaves.values()))
        return dict(zip(leaves, gradients, strict=True))

    def jvp(self, function: Callable[[Any], Tensor], params: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        """`function` at `params`, and its derivative there along `tangents`, by forward mode."""
        with warnings.catch_warnings():  # PyTorch's first use of forward mode warns of its own torch.jit.script
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
            # the tangent of a part of a vector would be as large as the vector
            own = {name: x if x.untyped_storage().nbytes() == x.nbytes else x.clone() for name, x in params.items()}
            result = torch.func.jvp(function, (own,), (tangents,))
        return result[0], result[1]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _apply(spec: TransformerSpec) -> Callable[..., Any]:
    """The network as a function of its parameters; the module only lends its code."""
    module = Transformer(spec).to(_device())
    names = {name for name, _ in module.named_parameters()}
    owners = [(name, *name.rpartition(".")[::2]) for name in names]
    slots = [(name, module.get_submodule(path)._parameters, own) for name, path, own in owners]

    def apply(params: Mapping[str, Tensor], z: Tensor, t: Tensor, condition: Condition) -> Any:
        if params.keys() != names:
            raise ValueError(f"parameters that are missing or unknown: {', '.join(sorted(params.keys() ^ names))}")
        for name, slot, own in slots:  # as torch.func.functional_call, whose bookkeeping takes as long as a block
            slot[own] = params[name]  # type: ignore[assignment]
        return module(z, t, condition)

    return apply


def _remembering(clock: Clock) -> Clock:
    """The same clock; eager code pays for each call, and a loss asks for the level of one tensor again and again."""
    remembered = lru_cache(maxsize=8)(clock)
    return lambda t: remembered(t) if isinstance(t, Tensor) else clock(t)


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Copies in PyTorch's own memory, whose alignment, and so the rounding of products, is always the same."""
    copied: dict[str, Any] = tree_map(
        lambda array: torch.from_numpy(np.require(array, requirements=["C", "W"])).to(_device(), copy=True),
        dict(arrays),
    )
    return copied


def _vector(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[key].ravel() for key in sorted(tensors)])


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy().copy()


def _arrays(tensors: Mapping[str, Tensor]) -> Weights:
    return {key: _array(tensor) for key, tensor in tensors.items()}


def _parts(vector: Tensor, like: Mapping[str, Any]) -> dict[str, Tensor]:
    """A vector's parts with the names and shapes of `like`, in order of name; they share its memory."""
    shapes = {key: like[key].shape for key in sorted(like)}
    pieces = vector.split([math.prod(shape) for shape in shapes.values()])
    return {key: piece.view(shape) for (key, shape), piece in zip(shapes.items(), pieces, strict=True)}


class TorchLearner(Learner):
    """A trained network is one vector, which makes the optimiser cheap; a loss sees its parts. Others are their parts.

    Only the parts that a turn trains require gradients, and only during the backward pass.
    """

    def start(self, weights: Mapping[str, Weights]) -> None:
        """Place the networks and make one optimiser for each turn."""
        self.apply = _apply(self.spec)
        self.method.clock = _remembering(self.method.clock)
        self.params = {name: _tensors(weights[name]) for name in (*self.names, *self.averages)}
        self.vectors = {name: _vector(self.params[name]) for name in self.moving}
        self.params |= {name: _parts(vector, self.params[name]) for name, vector in self.vectors.items()}
        betas, eps = (self.adam.beta1, self.adam.beta2), self.adam.eps
        self.optimisers = {
            turn: torch.optim.Adam([self.vectors[n] for n in spec.trains], lr=0.0, betas=betas, eps=eps, fused=True)
            for turn, spec in self.method.turns.items()
        }

    def _backward(self, turn: str, batch: Batch, draws: Batch) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The loss, the method's logs, and the gradient of each trained network as a vector."""
        trains = self.method.turns[turn].trains
        leaves = [part for name in trains for part in self.params[name].values()]
        for leaf in leaves:
            leaf.requires_grad_(True)
        nets, arrays = self.nets(self.params), (_tensors(batch), _tensors(draws))
        with torch.no_grad():
            reduced = self.method.reduce(turn, nets, *arrays, TorchOps())
        loss, logs = self.method.loss(turn, nets, *arrays, reduced, TorchOps())
        grads = iter(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
        for leaf in leaves:
            leaf.requires_grad_(False)
        return loss.detach(), logs, {name: _vector({key: next(grads) for key in self.params[name]}) for name in trains}

    def launch(
        self, turn: str, batch: Batch, draws: Batch, learning_rate: float, decays: Mapping[str, float]
    ) -> Callable[[], Update]:
        """One optimiser step, with the gradient scaled to the bound on its norm."""
        loss, logs, grads = self._backward(turn, batch, draws)
        norms = {name: torch.linalg.vector_norm(grad) for name, grad in grads.items()}
        scale = torch.clamp(self.adam.clip / torch.linalg.vector_norm(torch.stack(list(norms.values()))), max=1.0)
        for name, grad in grads.items():
            self.vectors[name].grad = grad.mul_(scale)
        optimiser = self.optimisers[turn]
        optimiser.param_groups[0]["lr"] = learning_rate
        optimiser.step()
        for name, average in self.averages.items():
            if average.of in grads:
                self.vectors[name].lerp_(self.vectors[average.of], 1 - decays[name])
        return lambda: Update(
            loss.item(), {n: v.item() for n, v in norms.items()}, {n: v.detach().item() for n, v in logs.items()}
        )

    def gradients(self, turn: str, batch: Batch, draws: Batch) -> tuple[float, dict[str, Weights]]:
        """The loss and its unclipped gradient in every trained network."""
        loss, _, grads = self._backward(turn, batch, draws)
        return loss.item(), {name: _arrays(_parts(grad, self.params[name])) for name, grad in grads.items()}

    def weights(self, name: str) -> Weights:
        """The current parameters of one network or average."""
        return _arrays(self.params[name])

    def state(self) -> dict[str, np.ndarray]:
        """Parameters, averages and Adam's moments."""
        groups = {f"network/{name}": self.params[name] for name in self.stored}
        state: dict[str, np.ndarray] = {}
        for turn, optimiser in self.optimisers.items():
            for name in self.method.turns[turn].trains:
                if moments := optimiser.state.get(self.vectors[name]):
                    groups[f"optimiser/{turn}/mu/{name}"] = _parts(moments["exp_avg"], self.params[name])
                    groups[f"optimiser/{turn}/nu/{name}"] = _parts(moments["exp_avg_sq"], self.params[name])
                    state[f"optimiser/{turn}/count"] = _array(moments["step"])
        for prefix, parts in groups.items():
            state |= {f"{prefix}/{key}": array for key, array in _arrays(parts).items()}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""

        def read(prefix: str, name: str) -> dict[str, Tensor]:
            return _tensors({key: state[f"{prefix}/{name}/{key}"] for key in self.params[name]})

        for name in self.stored:
            for key, value in read("network", name).items():
                self.params[name][key].copy_(value)
        for turn, optimiser in self.optimisers.items():
            optimiser.state.clear()  # a turn that the state has not taken yet has no moments there
            if f"optimiser/{turn}/count" not in state:
                continue
            for name in self.method.turns[turn].trains:
                optimiser.state[self.vectors[name]] = {
                    "step": torch.tensor(state[f"optimiser/{turn}/count"], device=_device()),
                    "exp_avg": _vector(read(f"optimiser/{turn}/mu", name)),
                    "exp_avg_sq": _vector(read(f"optimiser/{turn}/nu", name)),
                }


class TorchBackend(Backend):
    """PyTorch on the first GPU, or on the CPU."""

    name = "torch"

    def learner(self, method: Method, spec: TransformerSpec, weights: Mapping[str, Weights], adam: Adam) -> Learner:
        """The networks of a training run, on the device."""
        return TorchLearner(method, spec, weights, adam)

    def denoiser_step(
        self, spec: TransformerSpec, weights: Weights, step: Callable[..., Any], clock: Clock, guidance: float = 0.0
    ) -> Callable[..., Any]:
        """`step(denoiser, *arrays)` without gradients."""
        denoiser = Denoiser(_apply(spec), _tensors(weights), clock, spec.num_classes, guidance)

        def run(*arrays: Any) -> Any:
            with torch.no_grad():
                return step(denoiser, *tree_map(lambda array: torch.as_tensor(array, device=_device()), arrays))

        return run

    def to_numpy(self, x: Array) -> np.ndarray:
        """A tensor as a NumPy array."""
        return _array(x)

    def peak_memory_mb(self) -> float:
        """CUDA's peak allocation, or the peak resident size of the process."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
