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

from harness.backends.base import Adam, Backend, Learner, Update, Weights
from harness.diffusion import Array, Clock
from harness.method import Batch, Denoiser, Method
from harness.networks.jax import Transformer
from harness.networks.transformer import TransformerSpec


class JaxOps:
    """Gradient operations inside a loss."""

    def stop_gradient(self, x: Array) -> Array:
        """`x` as a constant."""
        return jax.lax.stop_gradient(x)

    def grad(self, function: Callable[[Any], Array], params: Any) -> Any:
        """The gradient of a scalar function at `params`."""
        return jax.grad(function)(params)

    def jvp(self, function: Callable[[Any], Array], params: Any, tangents: Any) -> tuple[Array, Array]:
        """`function` at `params`, and its derivative there along `tangents`, by forward mode."""
        value, derivative = jax.jvp(function, (params,), (tangents,))
        return value, derivative


def _apply(spec: TransformerSpec) -> Callable[..., Any]:
    """The network as a function of a flat dict of its parameters, named by their paths in the module."""
    params, static = eqx.partition(Transformer(spec), eqx.is_array)
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]

    def apply(params: Mapping[str, Array], z: Array, t: Array, labels: Array) -> Any:
        leaves = jax.tree_util.tree_unflatten(structure, [params[name] for name in names])
        return eqx.combine(leaves, static)(z, t, labels)

    return apply


def _device(tree: Any) -> Any:
    return jax.tree.map(jnp.array, dict(tree))


class JaxLearner(Learner):
    """Parameters as flat dicts of arrays; each turn is one compiled function."""

    def start(self, weights: Mapping[str, Weights]) -> None:
        """Place the networks and make one optimiser state for each turn."""
        self.apply = _apply(self.spec)
        self.params = {name: _device(weights[name]) for name in self.names}
        self.averaged = {name: _device(weights[name]) for name in self.averages}
        self.optimiser = optax.scale_by_adam(b1=self.adam.beta1, b2=self.adam.beta2, eps=self.adam.eps)
        self.moments = {turn: self.optimiser.init(self._split(turn)[0]) for turn in self.method.turns}
        self.compiled = {
            turn: jax.jit(partial(self._step, turn), donate_argnums=(0, 2, 3)) for turn in self.method.turns
        }
        self.compiled_gradients = {turn: jax.jit(partial(self._value_and_grad, turn)) for turn in self.method.turns}

    def _split(self, turn: str) -> tuple[dict[str, Any], dict[str, Any]]:
        trains = self.method.turns[turn].trains
        trained = {name: self.params[name] for name in trains}
        live = {**self.params, **self.averaged}
        return trained, {name: params for name, params in live.items() if name not in trains}

    def _value_and_grad(self, turn: str, trained: Any, frozen: Any, batch: Batch, draws: Batch) -> Any:
        reduced = self.method.reduce(turn, self.nets({**trained, **frozen}), batch, draws, JaxOps())

        def loss(params: Any) -> tuple[Array, dict[str, Array]]:
            return self.method.loss(turn, self.nets({**params, **frozen}), batch, draws, reduced, JaxOps())

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
        learning_rate: Array,
        decays: Mapping[str, Array],
    ) -> Any:
        (loss, logs), grads = self._value_and_grad(turn, trained, {**frozen, **averaged}, batch, draws)
        norms = {name: optax.tree.norm(grad) for name, grad in grads.items()}
        total = jnp.sqrt(sum(norm**2 for norm in norms.values()))
        scale = jnp.minimum(self.adam.clip / total, 1.0)
        direction, moments = self.optimiser.update(jax.tree.map(lambda g: g * scale, grads), moments)
        trained = jax.tree.map(lambda p, d: p - learning_rate * d, trained, direction)
        averaged = {
            name: jax.tree.map(
                lambda a, p, d=decays[name]: a + (1 - d) * (p - a), average, trained[self.averages[name].of]
            )
            for name, average in averaged.items()
        }
        return trained, moments, averaged, loss, norms, logs

    def update(
        self, turn: str, batch: Batch, draws: Batch, learning_rate: float, decays: Mapping[str, float]
    ) -> Update:
        """One optimiser step, with the gradient scaled to the bound on its norm."""
        trained, frozen = self._split(turn)
        followers = [name for name, average in self.averages.items() if average.of in trained]
        frozen = {name: params for name, params in frozen.items() if name not in followers}  # those are donated
        trained, self.moments[turn], averaged, loss, norms, logs = self.compiled[turn](
            trained,
            frozen,
            self.moments[turn],
            {name: self.averaged[name] for name in followers},
            dict(batch),
            dict(draws),
            np.float32(learning_rate),
            {name: np.float32(decays[name]) for name in followers},
        )
        self.params |= trained
        self.averaged |= averaged
        loss, norms, logs = jax.device_get((loss, norms, logs))
        return Update(float(loss), {n: float(v) for n, v in norms.items()}, {n: float(v) for n, v in logs.items()})

    def gradients(self, turn: str, batch: Batch, draws: Batch) -> tuple[float, dict[str, Weights]]:
        """The loss and its unclipped gradient in every trained network."""
        (loss, _), grads = self.compiled_gradients[turn](*self._split(turn), dict(batch), dict(draws))
        return float(loss), jax.tree.map(np.asarray, grads)

    def weights(self, name: str) -> Weights:
        """The current parameters of one network or average."""
        params = self.averaged[name] if name in self.averages else self.params[name]
        return {key: np.array(value) for key, value in params.items()}

    def state(self) -> dict[str, np.ndarray]:
        """Parameters, averages and Adam's moments."""
        state: dict[str, np.ndarray] = {}
        for name, params in {**self.params, **self.averaged}.items():
            state |= {f"network/{name}/{key}": np.array(value) for key, value in params.items()}
        for turn, moments in self.moments.items():
            state[f"optimiser/{turn}/count"] = np.array(moments.count)
            for moment in ("mu", "nu"):
                for name, values in getattr(moments, moment).items():
                    state |= {f"optimiser/{turn}/{moment}/{name}/{key}": np.array(v) for key, v in values.items()}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""

        def read(prefix: str, like: Mapping[str, Any]) -> dict[str, Any]:
            return {key: jnp.array(state[f"{prefix}/{key}"]) for key in like}

        self.params = {name: read(f"network/{name}", params) for name, params in self.params.items()}
        self.averaged = {name: read(f"network/{name}", params) for name, params in self.averaged.items()}
        for turn, moments in self.moments.items():
            self.moments[turn] = moments._replace(
                count=jnp.array(state[f"optimiser/{turn}/count"]),
                mu={name: read(f"optimiser/{turn}/mu/{name}", values) for name, values in moments.mu.items()},
                nu={name: read(f"optimiser/{turn}/nu/{name}", values) for name, values in moments.nu.items()},
            )


class JaxBackend(Backend):
    """JAX on its default device."""

    name = "jax"

    def learner(self, method: Method, spec: TransformerSpec, weights: Mapping[str, Weights], adam: Adam) -> Learner:
        """The networks of a training run, on the device."""
        return JaxLearner(method, spec, weights, adam)

    def denoiser_step(
        self, spec: TransformerSpec, weights: Weights, step: Callable[..., Any], clock: Clock
    ) -> Callable[..., Any]:
        """`step(denoiser, *arrays)`, compiled."""
        apply, params = _apply(spec), _device(weights)
        compiled = jax.jit(lambda params, *arrays: step(Denoiser(apply, params, clock), *arrays))
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
