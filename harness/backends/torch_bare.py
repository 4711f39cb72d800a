"""Updates and network calls written by hand in PyTorch: the yardstick of the harness's overhead, and of its losses.

Nothing here uses the harness but the network module and the cosine clock's definition, which stands here once more.
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.backends.base import Adam, Weights
from harness.method import Turn
from harness.networks.torch import Transformer
from harness.networks.transformer import TransformerSpec

Update = Callable[[], float]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _levels(t: Tensor, logsnr_max: float = 10.0) -> tuple[Tensor, Tensor]:
    """alpha and sigma (batch, 1, 1, 1) of the cosine clock with log-SNR in [-logsnr_max, logsnr_max]."""
    low, high = math.atan(math.exp(-0.5 * logsnr_max)), math.atan(math.exp(0.5 * logsnr_max))
    logsnr = -2 * torch.log(torch.tan(low + t * (high - low)))[:, None, None, None]
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def _predict(network: Transformer, z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    alpha, sigma = _levels(t)
    return alpha * z - sigma * network(z, t, labels)[0]


def make_network(spec: TransformerSpec, weights: Weights) -> Transformer:
    """A network with these weights, trainable."""
    network = Transformer(spec)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return network


def teacher_loss(network: Transformer, x: Tensor, labels: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """Squared error in v, with hidden labels where `draws["hide"]`."""
    t, eps = draws["t"], draws["eps"]
    alpha, sigma = _levels(t)
    labels = torch.where(draws["hide"], network.spec.num_classes, labels)
    v = network(alpha * x + sigma * eps, t, labels)[0]
    return (v - (alpha * eps - sigma * x)).square().sum(dim=(1, 2, 3)).mean()


def matching_losses(
    teacher: Transformer,
    student: Transformer,
    auxiliary: Transformer,
    x: Tensor,
    labels: Tensor,
    draws: Mapping[str, Tensor],
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The auxiliary's and the student's loss of Algorithm 2, weight EDM, as functions to call."""
    t, s = draws["t"], draws["s"]
    alpha_t, sigma_t = _levels(t)
    alpha_s, sigma_s = _levels(s)
    z_t = alpha_t * x + sigma_t * draws["eps_t"]
    weight = ((alpha_s / sigma_s) ** 2 + 4).flatten()

    def transition(x_student: Tensor) -> Tensor:
        alpha_ts = alpha_t / alpha_s
        variance_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
        mean = alpha_ts * sigma_s**2 / sigma_t**2 * z_t + alpha_s * variance_ts / sigma_t**2 * x_student
        return mean + (sigma_s**2 * variance_ts / sigma_t**2).clamp(min=0).sqrt() * draws["eps_s"]

    def auxiliary_loss() -> Tensor:
        with torch.no_grad():
            x_student = _predict(student, z_t, t, labels)
            z_s = transition(x_student)
            g_theta = _predict(teacher, z_s, s, labels)
        g_phi = _predict(auxiliary, z_s, s, labels)
        error = (x_student - g_phi).square() + (g_theta - g_phi).square()
        return (weight * error.sum(dim=(1, 2, 3))).mean()

    def student_loss() -> Tensor:
        x_student = _predict(student, z_t, t, labels)
        with torch.no_grad():
            z_s = transition(x_student)
            bracket = _predict(auxiliary, z_s, s, labels) - _predict(teacher, z_s, s, labels)
        return (weight * (x_student * bracket).sum(dim=(1, 2, 3))).mean()

    return auxiliary_loss, student_loss


def _optimise(network: Transformer, optimiser: torch.optim.Optimizer, loss: Tensor, adam: Adam, rate: float) -> float:
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), adam.clip)
    optimiser.param_groups[0]["lr"] = rate
    optimiser.step()
    return loss.item()


def updates(
    spec: TransformerSpec, weights: Weights, images: np.ndarray, labels: np.ndarray, batch: int, adam: Adam, k: int
) -> dict[str, Update]:
    """One hand-written update for each turn: "denoise" (with EMA), "auxiliary" and "student"; each returns its loss."""
    rate, shape, device = 1e-4, images.shape[1:], _device()
    all_images, all_labels = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    model, teacher, student, auxiliary = (make_network(spec, weights).to(device) for _ in range(4))
    average = copy.deepcopy(model)
    betas = (adam.beta1, adam.beta2)
    optimisers = {
        net: torch.optim.Adam(net.parameters(), betas=betas, eps=adam.eps) for net in (model, student, auxiliary)
    }

    def pick() -> tuple[Tensor, Tensor]:
        index = torch.randint(len(images), (batch,), device=device)
        return all_images[index], all_labels[index]

    def uniform() -> Tensor:
        return torch.rand(batch, device=device)

    def normal() -> Tensor:
        return torch.randn(batch, *shape, device=device)

    def denoise() -> float:
        x, y = pick()
        draws = {"t": uniform(), "eps": normal(), "hide": uniform() < 0.1}
        value = _optimise(model, optimisers[model], teacher_loss(model, x, y, draws), adam, rate)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 0.001)
        return value

    def match(turn: int, network: Transformer) -> float:
        x, y = pick()
        s = uniform()
        draws = {"s": s, "t": (s + uniform() / k).clamp(max=1), "eps_t": normal(), "eps_s": normal()}
        loss = matching_losses(teacher, student, auxiliary, x, y, draws)[turn]()
        return _optimise(network, optimisers[network], loss, adam, rate)

    return {"denoise": denoise, "auxiliary": lambda: match(0, auxiliary), "student": lambda: match(1, student)}


def passes(
    spec: TransformerSpec, weights: Weights, images: np.ndarray, labels: np.ndarray
) -> Callable[[Turn], list[Any]]:
    """A turn's network calls, bare, on one batch: images (batch, channels, size, size) and labels (batch,).

    The returned function makes as many calls of each kind as its turn counts, waits for them, and gives their results
    in the order of the turn's fields: v; the gradients of a mean square in the parameters; in the input; v and its
    derivative along the parameters.
    """
    device = _device()
    z, y = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    t = (torch.arange(len(z), device=device) + 0.5) / len(z)
    network = make_network(spec, weights).to(device)
    frozen = copy.deepcopy(network).requires_grad_(False)
    leaves, params = list(network.parameters()), dict(frozen.named_parameters())

    def loss(net: Transformer, z: Tensor) -> Tensor:
        return net(z, t, y)[0].square().mean()

    def forward() -> Tensor:
        with torch.no_grad():
            return frozen(z, t, y)[0]

    def gradient() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(network, z), leaves)

    def input_gradient() -> Tensor:
        x = z.clone().requires_grad_()
        return torch.autograd.grad(loss(frozen, x), x)[0]

    def jvp() -> Any:
        with torch.no_grad(), warnings.catch_warnings():  # of forward mode's own torch.jit.script, at its first use
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
            return torch.func.jvp(lambda p: torch.func.functional_call(frozen, p, (z, t, y))[0], (params,), (params,))

    def run(turn: Turn) -> list[Any]:
        kinds = (forward, turn.forward), (gradient, turn.gradient), (input_gradient, turn.input_gradient)
        results = [call() for call, count in (*kinds, (jvp, turn.jvp)) for _ in range(count)]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return results

    return run
