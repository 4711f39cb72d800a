"""The JAX backend: equinox networks, one compiled step for each turn, optax's Adam."""

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
    """Each network is one vector, which makes the optimiser cheap; a loss sees its parts.

    Each turn is one compiled function.
    """

    def start(self, weights: Mapping[str, Weights]) -> None:
        """Place the networks and make one optimiser state for each turn."""
        self.apply = _apply(self.spec)
        vectors, self.parts = {}, {}
        for name in (*self.names, *self.averages):
            vectors[name], self.parts[name] = ravel_pytree(_device(weights[name]))
        self.params = {name: vectors[name] for name in self.names}
        self.averaged = {name: vectors[name] for name in self.averages}
        self.optimiser = optax.scale_by_adam(b1=self.adam.beta1, b2=self.adam.beta2, eps=self.adam.eps)
        self.moments = {turn: self.optimiser.init(self._split(turn)[0]) for turn in self.method.turns}
        self.compiled = {
            turn: jax.jit(partial(self._step, turn), donate_argnums=(0, 2, 3)) for turn in self.method.turns
        }
        self.compiled_gradients = {turn: jax.jit(partial(self._value_and_grad, turn)) for turn in self.method.turns}
        # by itself: as a part of the step it makes XLA's program slower than the two are together
        self.compiled_reduce = {turn: jax.jit(partial(self._reduce, turn)) for turn in self.method.turns}

    def _split(self, turn: str) -> tuple[dict[str, Any], dict[str, Any]]:
        trains = self.method.turns[turn].trains
        trained = {name: self.params[name] for name in trains}
        live = {**self.params, **self.averaged}
        return trained, {name: vector for name, vector in live.items() if name not in trains}

    def _nets(self, vectors: Mapping[str, Array]) -> Networks:
        return self.nets({name: self.parts[name](vector) for name, vector in vectors.items()})

    def _reduce(self, turn: str, trained: Any, frozen: Any, batch: Batch, draws: Batch) -> Any:
        return self.method.reduce(turn, self._nets({**trained, **frozen}), batch, draws, JaxOps())

    def _value_and_grad(self, turn: str, trained: Any, frozen: Any, batch: Batch, draws: Batch, reduced: Any) -> Any:
        def loss(vectors: Any) -> tuple[Array, dict[str, Array]]:
            return self.method.loss(turn, self._nets({**vectors, **frozen}), batch, draws, reduced, JaxOps())

        return jax.value_and_grad(loss, has_aux=True)(trained)

    def _step(
        self,
        turn: str,
        trained: Any,
        frozen: Any,
        moments: Any,
        averaged: Any,
        batch: Batch,
        draws: Batch,
        reduced: Any,
        learning_rate: Array,
        decays: Mapping[str, Array],
    ) -> Any:
        (loss, logs), grads = self._value_and_grad(turn, trained, {**frozen, **averaged}, batch, draws, reduced)
        norms = {name: jnp.linalg.norm(grad) for name, grad in grads.items()}
        total = jnp.sqrt(sum(norm**2 for norm in norms.values()))
        scale = jnp.minimum(self.adam.clip / total, 1.0)
        direction, moments = self.optimiser.update(jax.tree.map(lambda g: g * scale, grads), moments)
        trained = jax.tree.map(lambda p, d: p - learning_rate * d, trained, direction)
        averaged = {
            name: average + (1 - decays[name]) * (trained[self.averages[name].of] - average)
            for name, average in averaged.items()
        }
        return trained, moments, averaged, loss, norms, logs

    def launch(
        self, turn: str, batch: Batch, draws: Batch, learning_rate: float, decays: Mapping[str, float]
    ) -> Callable[[], Update]:
        """One optimiser step, with the gradient scaled to the bound on its norm."""
        trained, frozen = self._split(turn)
        batch, draws = dict(batch), dict(draws)
        reduced = self.compiled_reduce[turn](trained, frozen, batch, draws)
        followers = [name for name, average in self.averages.items() if average.of in trained]
        frozen = {name: params for name, params in frozen.items() if name not in followers}  # those are donated
        trained, self.moments[turn], averaged, loss, norms, logs = self.compiled[turn](
            trained,
            frozen,
            self.moments[turn],
            {name: self.averaged[name] for name in followers},
            batch,
            draws,
            reduced,
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
        inputs = *self._split(turn), dict(batch), dict(draws)
        (loss, _), grads = self.compiled_gradients[turn](*inputs, self.compiled_reduce[turn](*inputs))
        return float(loss), {name: self._arrays(name, grad) for name, grad in grads.items()}

    def _arrays(self, name: str, vector: Array) -> Weights:
        """A vector of one network, by its parameters."""
        return {key: np.array(part) for key, part in self.parts[name](vector).items()}

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
        for group, vectors in groups.items():
            for name, vector in vectors.items():
                state |= {f"{group}/{name}/{key}": array for key, array in self._arrays(name, vector).items()}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""

        def read(group: str, like: Mapping[str, Array]) -> dict[str, Array]:
            keys = {name: self.parts[name](vector) for name, vector in like.items()}
            arrays = {name: {key: state[f"{group}/{name}/{key}"] for key in keys[name]} for name in like}
            return {name: ravel_pytree(_device(array))[0] for name, array in arrays.items()}

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
