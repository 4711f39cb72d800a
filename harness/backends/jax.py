"""The JAX backend: equinox networks, compiled losses and gradients, optax's Adam."""

import resource
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from harness.backends.base import Adam, Backend, Learner, Update, Weights
from harness.conditions import Condition
from harness.diffusion import Array, Clock
from harness.method import Batch, Denoiser, Method, Networks
from harness.networks.jax import Transformer
from harness.networks.transformer import TransformerSpec


class JaxOps:
    """Gradient operations inside a loss."""

    def stop_gradient(self, x: Array) -> Array:
        """`x` as a constant."""
        return jax.lax.stop_gradient(x)

    def conv(self, x: Array, weight: Array, bias: Array) -> Array:
        """Cross-correlation with zero padding that keeps the size."""
        return jax.lax.conv(x, weight, (1, 1), "SAME") + bias[:, None, None]

    def grad(self, function: Callable[[Any], Array], params: Any) -> Any:
        """The gradient of a scalar function at `params`."""
        return jax.lax.stop_gradient(jax.grad(function)(params))

    def jvp(self, function: Callable[[Any], Array], params: Any, tangents: Any) -> tuple[Array, Array]:
        """`function` at `params`, and its derivative there along `tangents`, by forward mode."""
        value, derivative = jax.jvp(function, (params,), (tangents,))
        return value, derivative


def _apply(spec: TransformerSpec) -> Callable[..., Any]:
    """The network as a function of a flat dict of its parameters, named by their paths in the module."""
    params, static = eqx.partition(Transformer(spec), eqx.is_array)
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]

    def apply(params: Mapping[str, Array], z: Array, t: Array, condition: Condition) -> Any:
        leaves = jax.tree_util.tree_unflatten(structure, [params[name] for name in names])
        return eqx.combine(leaves, static)(z, t, condition)

    return apply


def _device(tree: Any) -> Any:
    return jax.tree.map(jnp.array, dict(tree))


class JaxLearner(Learner):
    """A trained network is one vector, which makes the optimiser cheap; a loss sees its parts. Others are their parts.

    A method's reduce, a turn's loss with its gradient, and the optimiser's step are compiled each by itself: as one
    function XLA's program is slower than they are together.
    """

    def start(self, weights: Mapping[str, Weights]) -> None:
        """Place the networks and make one optimiser state for each turn."""
        self.apply = _apply(self.spec)
        placed = {name: self._place(name, weights[name]) for name in (*self.names, *self.averages)}
        self.parts = {name: parts for name, (_, parts) in placed.items()}
        self.params = {name: placed[name][0] for name in self.names}
        self.averaged = {name: placed[name][0] for name in self.averages}
        self.optimiser = optax.scale_by_adam(b1=self.adam.beta1, b2=self.adam.beta2, eps=self.adam.eps)
        self.moments = {turn: self.optimiser.init(self._split(turn)[0]) for turn in self.method.turns}
        self.compiled_reduce = {turn: jax.jit(partial(self._reduce, turn)) for turn in self.method.turns}
        self.compiled_gradients = {turn: jax.jit(partial(self._value_and_grad, turn)) for turn in self.method.turns}
        self.compiled_step = jax.jit(self._step, donate_argnums=(1, 2, 3))

    def _place(self, name: str, weights: Weights) -> tuple[Any, Callable[[Any], dict[str, Array]]]:
        """A network on the device, and what gives its parts."""
        arrays = _device(weights)
        return ravel_pytree(arrays) if name in self.moving else (arrays, dict)

    def _split(self, turn: str) -> tuple[dict[str, Any], dict[str, Any]]:
        trains = self.method.turns[turn].trains
        trained = {name: self.params[name] for name in trains}
        live = {**self.params, **self.averaged}
        return trained, {name: network for name, network in live.items() if name not in trains}

    def _nets(self, placed: Mapping[str, Any]) -> Networks:
        return self.nets({name: self.parts[name](network) for name, network in placed.items()})

    def _reduce(self, turn: str, trained: Any, frozen: Any, batch: Batch, draws: Batch) -> Any:
        return self.method.reduce(turn, self._nets({**trained, **frozen}), batch, draws, JaxOps())

    def _value_and_grad(self, turn: str, trained: Any, frozen: Any, batch: Batch, draws: Batch, reduced: Any) -> Any:
        def loss(vectors: Any) -> tuple[Array, dict[str, Array]]:
            return self.method.loss(turn, self._nets({**vectors, **frozen}), batch, draws, reduced, JaxOps())

        return jax.value_and_grad(loss, has_aux=True)(trained)

    def _differentiate(self, turn: str, batch: Batch, draws: Batch) -> Any:
        """(loss, logs), and the gradient of each trained network as a vector."""
        inputs = *self._split(turn), dict(batch), dict(draws)
        reduces = type(self.method).reduce is not Method.reduce
        reduced = self.compiled_reduce[turn](*inputs) if reduces else None
        return self.compiled_gradients[turn](*inputs, reduced)

    def _step(
        self,
        grads: Any,
        trained: Any,
        moments: Any,
        averaged: Any,
        learning_rate: Array,
        decays: Mapping[str, Array],
    ) -> Any:
        norms = {name: jnp.linalg.norm(grad) for name, grad in grads.items()}
        total = jnp.sqrt(sum(norm**2 for norm in norms.values()))
        scale = jnp.minimum(self.adam.clip / total, 1.0)
        direction, moments = self.optimiser.update(jax.tree.map(lambda g: g * scale, grads), moments)
        trained = jax.tree.map(lambda p, d: p - learning_rate * d, trained, direction)
        averaged = {
            name: average + (1 - decays[name]) * (trained[self.averages[name].of] - average)
            for name, average in averaged.items()
        }
        return trained, moments, averaged, norms

    def launch(
        self, turn: str, batch: Batch, draws: Batch, learning_rate: float, decays: Mapping[str, float]
    ) -> Callable[[], Update]:
        """One optimiser step, with the gradient scaled to the bound on its norm."""
        (loss, logs), grads = self._differentiate(turn, batch, draws)
        followers = [name for name, average in self.averages.items() if average.of in grads]
        trained, self.moments[turn], averaged, norms = self.compiled_step(
            grads,
            {name: self.params[name] for name in grads},
            self.moments[turn],
            {name: self.averaged[name] for name in followers},
            np.float32(learning_rate),
            {name: np.float32(decays[name]) for name in followers},
        )
        self.params |= trained
        self.averaged |= averaged

        def measured() -> Update:
            values = jax.device_get((loss, norms, logs))
            return Update(*jax.tree.map(float, values))

        return measured

    def gradients(self, turn: str, batch: Batch, draws: Batch) -> tuple[float, dict[str, Weights]]:
        """The loss and its unclipped gradient in every trained network."""
        (loss, _), grads = self._differentiate(turn, batch, draws)
        return float(loss), {name: self._arrays(name, grad) for name, grad in grads.items()}

    def _arrays(self, name: str, placed: Any) -> Weights:
        """A network, or what is shaped like it, by its parameters."""
        return {key: np.array(part) for key, part in self.parts[name](placed).items()}

    def weights(self, name: str) -> Weights:
        """The current parameters of one network or average."""
        return self._arrays(name, self.averaged[name] if name in self.averages else self.params[name])

    def state(self) -> dict[str, np.ndarray]:
        """Parameters, averages and Adam's moments."""
        live = {**self.params, **self.averaged}
        groups = {"network": {name: live[name] for name in self.stored}}
        state: dict[str, np.ndarray] = {}
        for turn, moments in self.moments.items():
            groups |= {f"optimiser/{turn}/mu": moments.mu, f"optimiser/{turn}/nu": moments.nu}
            state[f"optimiser/{turn}/count"] = np.array(moments.count)
        for group, networks in groups.items():
            for name, placed in networks.items():
                state |= {f"{group}/{name}/{key}": array for key, array in self._arrays(name, placed).items()}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""

        def read(group: str, like: Mapping[str, Any]) -> dict[str, Any]:
            keys = {name: self.parts[name](placed) for name, placed in like.items()}
            arrays = {name: {key: state[f"{group}/{name}/{key}"] for key in keys[name]} for name in like}
            return {name: self._place(name, array)[0] for name, array in arrays.items()}

        self.params |= read("network", {name: self.params[name] for name in self.stored if name in self.params})
        self.averaged = read("network", self.averaged)
        for turn, moments in self.moments.items():
            self.moments[turn] = moments._replace(
                count=jnp.array(state[f"optimiser/{turn}/count"]),
                mu=read(f"optimiser/{turn}/mu", moments.mu),
                nu=read(f"optimiser/{turn}/nu", moments.nu),
            )


class JaxBackend(Backend):
    """JAX on its default device."""

    name = "jax"

    def learner(self, method: Method, spec: TransformerSpec, weights: Mapping[str, Weights], adam: Adam) -> Learner:
        """The networks of a training run, on the device."""
        return JaxLearner(method, spec, weights, adam)

    def denoiser_step(
        self, spec: TransformerSpec, weights: Weights, step: Callable[..., Any], clock: Clock, guidance: float = 0.0
    ) -> Callable[..., Any]:
        """`step(denoiser, *arrays)`, compiled."""
        apply, params = _apply(spec), _device(weights)
        compiled = jax.jit(
            lambda params, *arrays: step(Denoiser(apply, params, clock, spec.num_classes, guidance), *arrays)
        )
        return lambda *arrays: compiled(params, *arrays)

    def to_numpy(self, x: Array) -> np.ndarray:
        """A device array as a NumPy array."""
        return np.asarray(x)

    def peak_memory_mb(self) -> float:
        """The device's peak allocation where it reports one, or the peak resident size of the process."""
        stats = jax.devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"] / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
