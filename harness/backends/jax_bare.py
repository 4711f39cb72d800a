"""Updates and network calls written by hand in JAX: the yardstick of the harness's overhead.

Nothing here uses the harness but the network module and the cosine clock's definition, which stands here once more.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from harness.backends.base import Adam, Weights
from harness.method import Turn
from harness.networks.jax import Transformer
from harness.networks.transformer import TransformerSpec

Update = Callable[[], float]


def _levels(t: Array, logsnr_max: float = 10.0) -> tuple[Array, Array]:
    """alpha and sigma (batch, 1, 1, 1) of the cosine clock with log-SNR in [-logsnr_max, logsnr_max]."""
    low, high = math.atan(math.exp(-0.5 * logsnr_max)), math.atan(math.exp(0.5 * logsnr_max))
    logsnr = -2 * jnp.log(jnp.tan(low + t * (high - low)))[:, None, None, None]
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def _predict(network: Any, z: Array, t: Array, labels: Array) -> Array:
    alpha, sigma = _levels(t)
    return alpha * z - sigma * network(z, t, labels)[0]


def _network(spec: TransformerSpec, weights: Weights) -> Transformer:
    network = Transformer(spec)
    paths, structure = jax.tree_util.tree_flatten_with_path(network)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    return jax.tree_util.tree_unflatten(structure, [jnp.array(weights[name]) for name in names])


def _teacher_loss(network: Any, x: Array, labels: Array, key: Array) -> Array:
    key_t, key_eps, key_hide = jax.random.split(key, 3)
    t, eps = jax.random.uniform(key_t, (len(x),)), jax.random.normal(key_eps, x.shape)
    alpha, sigma = _levels(t)
    labels = jnp.where(jax.random.uniform(key_hide, (len(x),)) < 0.1, network.spec.num_classes, labels)
    v = network(alpha * x + sigma * eps, t, labels)[0]
    return ((v - (alpha * eps - sigma * x)) ** 2).sum(axis=(1, 2, 3)).mean()


def _matching_loss(
    network: Any, turn: str, k: int, teacher: Any, other: Any, x: Array, labels: Array, key: Array
) -> Array:
    student, auxiliary = (other, network) if turn == "auxiliary" else (network, other)
    key_s, key_t, key_z, key_w = jax.random.split(key, 4)
    s = jax.random.uniform(key_s, (len(x),))
    t = jnp.minimum(s + jax.random.uniform(key_t, (len(x),)) / k, 1)
    alpha_t, sigma_t = _levels(t)
    alpha_s, sigma_s = _levels(s)
    z_t = alpha_t * x + sigma_t * jax.random.normal(key_z, x.shape)
    weight = ((alpha_s / sigma_s) ** 2 + 4).reshape(-1)
    x_student = _predict(student, z_t, t, labels)
    constant = jax.lax.stop_gradient(x_student)
    alpha_ts = alpha_t / alpha_s
    variance_ts = jnp.maximum(sigma_t**2 - alpha_ts**2 * sigma_s**2, 0)
    mean = alpha_ts * sigma_s**2 / sigma_t**2 * z_t + alpha_s * variance_ts / sigma_t**2 * constant
    z_s = mean + jnp.sqrt(sigma_s**2 * variance_ts / sigma_t**2) * jax.random.normal(key_w, x.shape)
    g_theta, g_phi = _predict(teacher, z_s, s, labels), _predict(auxiliary, z_s, s, labels)
    if turn == "auxiliary":
        error = (constant - g_phi) ** 2 + (g_theta - g_phi) ** 2
        return (weight * error.sum(axis=(1, 2, 3))).mean()
    return (weight * (x_student * jax.lax.stop_gradient(g_phi - g_theta)).sum(axis=(1, 2, 3))).mean()


def updates(
    spec: TransformerSpec, weights: Weights, images: np.ndarray, labels: np.ndarray, batch: int, adam: Adam, k: int
) -> dict[str, Update]:
    """One hand-written update for each turn: "denoise" (with EMA), "auxiliary" and "student"; each returns its loss."""
    chain = optax.chain(
        optax.clip_by_global_norm(adam.clip), optax.adam(1e-4, b1=adam.beta1, b2=adam.beta2, eps=adam.eps)
    )
    nets = {name: _network(spec, weights) for name in ("model", "average", "teacher", "student", "auxiliary")}
    moments = {name: chain.init(eqx.filter(net, eqx.is_array)) for name, net in nets.items()}
    all_images, all_labels = jnp.array(images), jnp.array(labels)
    state = {"key": jax.random.key(0)}

    def prepare(key: Array) -> tuple[Array, Array, Array, Array]:
        key, pick, draw = jax.random.split(key, 3)
        index = jax.random.randint(pick, (batch,), 0, len(images))
        return key, all_images[index], all_labels[index], draw

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def denoise(network: Any, average: Any, moment: Any, key: Array) -> Any:
        key, x, y, draw = prepare(key)
        loss, grads = jax.value_and_grad(_teacher_loss)(network, x, y, draw)
        change, moment = chain.update(grads, moment)
        network = optax.apply_updates(network, change)
        average = jax.tree.map(lambda a, p: a + 0.001 * (p - a), average, network)
        return network, average, moment, key, loss

    @partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
    def match(turn: str, network: Any, moment: Any, teacher: Any, other: Any, key: Array) -> Any:
        key, x, y, draw = prepare(key)
        loss, grads = jax.value_and_grad(_matching_loss)(network, turn, k, teacher, other, x, y, draw)
        change, moment = chain.update(grads, moment)
        return optax.apply_updates(network, change), moment, key, loss

    def run_denoise() -> float:
        nets["model"], nets["average"], moments["model"], state["key"], loss = denoise(
            nets["model"], nets["average"], moments["model"], state["key"]
        )
        return float(loss)

    def run_match(turn: str, other: str) -> float:
        nets[turn], moments[turn], state["key"], loss = match(
            turn, nets[turn], moments[turn], nets["teacher"], nets[other], state["key"]
        )
        return float(loss)

    return {
        "denoise": run_denoise,
        "auxiliary": lambda: run_match("auxiliary", "student"),
        "student": lambda: run_match("student", "auxiliary"),
    }


def passes(
    spec: TransformerSpec, weights: Weights, images: np.ndarray, labels: np.ndarray
) -> Callable[[Turn], list[Any]]:
    """A turn's network calls, bare and each compiled, on one batch: images (batch, channels, size, size), labels.

    The returned function makes as many calls of each kind as its turn counts, waits for them, and gives their results
    in the order of the turn's fields: v; the gradients of a mean square in the parameters; in the input; v and its
    derivative along the parameters.
    """
    t = (jnp.arange(len(images)) + 0.5) / len(images)
    arguments = _network(spec, weights), jnp.array(images), t, jnp.array(labels)

    def v(network: Any, z: Array, t: Array, labels: Array) -> Array:
        return network(z, t, labels)[0]

    def loss(*arguments: Any) -> Array:
        return (v(*arguments) ** 2).mean()

    def derivative(tangent: Any, network: Any, *rest: Array) -> Any:
        return jax.jvp(lambda net: v(net, *rest), (network,), (tangent,))

    # along a tangent of its own: where it were the network again, XLA would compute half of the products once
    forward, gradient, jvp = jax.jit(v), jax.jit(jax.grad(loss)), partial(jax.jit(derivative), arguments[0])
    input_gradient = jax.jit(jax.grad(loss, argnums=1))

    def run(turn: Turn) -> list[Any]:
        kinds = (forward, turn.forward), (gradient, turn.gradient), (input_gradient, turn.input_gradient)
        results = [call(*arguments) for call, count in (*kinds, (jvp, turn.jvp)) for _ in range(count)]
        return jax.block_until_ready(results)

    return run
