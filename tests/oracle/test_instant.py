"""Algorithm 3: its direction against finite differences; its update and guidance in closed form."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.backends.torch import TorchOps
from harness.diffusion import CosineClock, v_from_x
from harness.method import Denoiser, bind
from harness.moment_matching import InstantMomentMatching, MomentMatchingOptions
from harness.networks.torch import Transformer
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from tests.conftest import generic_weights, random_batch

CLOCK = CosineClock()


def make(spec: TransformerSpec, guidance: float = 0.0, **options: Any) -> InstantMomentMatching:
    return InstantMomentMatching(4, 100, CLOCK, MomentMatchingOptions(**options), spec, {"teacher": guidance})


def pair_batch(method: InstantMomentMatching, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch of two examples for each sample, and its draws, in float64."""

    def doubles(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}

    flat = random_batch(method.spec, 2 * count)
    batch = {name: x.reshape(count, 2, *x.shape[1:]) for name, x in flat.items()}
    return doubles(batch), doubles(method.draw(Noise(0), 0, 0, count))


@pytest.mark.parametrize("h", [1e-3, 1e-4])
def test_the_direction_is_the_finite_difference_of_the_teacher_along_nu(spec: TransformerSpec, h: float) -> None:
    """The student's gradient is that of x~^T J nu; J nu is read off it with a student whose output is its parameter."""
    method, module = make(spec, weight="flat"), Transformer(spec).double()
    batch, draws = pair_batch(method, 6)
    params = {
        name: {key: torch.from_numpy(value).double() for key, value in generic_weights(spec, seed).items()}
        for seed, name in enumerate(("teacher", "student", "preconditioner"))
    }
    params["preconditioner"] = {key: value.exp() for key, value in params["preconditioner"].items()}
    nets = bind(method, method.networks(), lambda p, *z: torch.func.functional_call(module, p, z), params)
    nu = method.reduce("student", nets, batch, draws, TorchOps())
    scale = 1 / torch.stack([x.norm() for x in nu.values()]).norm()
    nu = {key: scale * value for key, value in nu.items()}  # so that h is a step of that length
    seen: list[tuple[Tensor, ...]] = []

    class Recording(TorchOps):
        def jvp(self, function: Any, params: Any, tangents: Any) -> tuple[Tensor, Tensor]:
            value, slope = super().jvp(function, params, tangents)
            moved = [function({key: params[key] + sign * h * tangents[key] for key in params}) for sign in (1, -1)]
            seen.append((slope, (moved[0] - moved[1]) / (2 * h)))
            return value, slope

    method.loss("student", nets, batch, draws, nu, Recording())
    ((slope, difference),) = seen
    assert slope.norm() > 1e-3
    assert (slope - difference).norm() <= 1e-3 * slope.norm()


def linear(params: dict[str, Tensor], z: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The v-prediction of the denoiser x_hat = A z."""
    x = (z.flatten(1) @ params["A"].T).reshape(z.shape)
    return v_from_x(z, x, CLOCK(t)), []


def test_the_expected_update_is_half_of_the_gradient_of_equation_9(spec: TransformerSpec) -> None:
    """The same finite pool as both batches turns their product of means into the product of the expectations."""
    method, size, count = make(spec, weight="edm"), 16, 50
    batch, draws = pair_batch(method, count)
    for arrays in (batch, draws):
        arrays |= {name: torch.stack([x[:, 0], x[:, 0]], 1) for name, x in arrays.items()}
    generator = torch.Generator().manual_seed(0)
    theta, eta = (torch.eye(size).double() * 0.5 + 0.1 * torch.randn(size, size, generator=generator) for _ in "ab")
    eta, lam = eta.double().requires_grad_(), torch.rand(size, size, generator=generator).double() + 0.5
    nets = {
        "teacher": Denoiser(linear, {"A": theta.double()}, CLOCK, spec.num_classes),
        "student": Denoiser(linear, {"A": eta}, CLOCK, spec.num_classes),
        "preconditioner": {"A": lam},
    }
    with torch.no_grad():
        nu = method.reduce("student", nets, batch, draws, TorchOps())
    loss, _ = method.loss("student", nets, batch, draws, nu, TorchOps())
    (gradient,) = torch.autograd.grad(loss, eta)

    # By hand: x~ = eta z_t, grad_theta w ||x~ - theta z_s||^2 = -2 w (x~ - theta z_s) z_s^T, z_s held constant.
    level_t, level_s = CLOCK(draws["t"][:, 0]), CLOCK(draws["s"][:, 0])
    x, eps = batch["images"][:, 0].flatten(1), draws["eps_t"][:, 0].flatten(1)
    z_t = level_t.alpha[:, None] * x + level_t.sigma[:, None] * eps
    sample = (z_t @ eta.T).detach()
    first = {name: array[:, 0] for name, array in draws.items()}
    z_s = method.transition(z_t.reshape(-1, 1, 4, 4), sample.reshape(-1, 1, 4, 4), first).flatten(1)
    w = level_s.logsnr.exp() + 4
    moment = -2 * torch.einsum("b,bi,bj->ij", w, sample - z_s @ theta.double().T, z_s) / count
    equation_9 = 0.5 * (lam * moment**2).sum()
    by_hand = -2 * torch.einsum("b,ij,bj,bk->ik", w, lam * moment, z_s, z_t) / count
    assert loss.item() == pytest.approx(equation_9.item(), rel=1e-9)
    torch.testing.assert_close(gradient, 0.5 * by_hand, rtol=1e-9, atol=0)


def by_class(params: dict[str, Tensor], z: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The v-prediction of the denoiser x_hat = A z + b_class."""
    x = (z.flatten(1) @ params["A"].T + params["b"][labels]).reshape(z.shape)
    return v_from_x(z, x, CLOCK(t)), []


@pytest.mark.parametrize("weight", ["edm", "dmd-adaptive"])
def test_a_guided_teacher_has_the_gradient_of_the_network_itself(spec: TransformerSpec, weight: str) -> None:
    """nu = Lambda 2 w (g_guided - x~)^T J and the student's gradient w J nu, with J that of the conditional prediction.

    A prediction of "none" moves nothing: b of no class has no part in nu.
    """
    guidance, size, count, none = 1.5, 16, 20, spec.num_classes
    method = make(spec, guidance, weight=weight)
    batch, draws = pair_batch(method, count)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def weights() -> dict[str, Tensor]:
        return {"A": 0.5 * torch.eye(size).double() + 0.1 * random(size, size), "b": 0.3 * random(none + 1, size)}

    theta, eta, lam = weights(), weights(), {name: value.exp() for name, value in weights().items()}
    leaf = eta["A"].requires_grad_()
    params = {"teacher": theta, "student": eta, "preconditioner": lam}
    nets = bind(method, method.networks(), by_class, params)
    with torch.no_grad():
        nu = method.reduce("student", nets, batch, draws, TorchOps())
    loss, _ = method.loss("student", nets, batch, draws, nu, TorchOps())
    (gradient,) = torch.autograd.grad(loss, leaf)

    def half(i: int) -> tuple[Tensor, ...]:
        """z_t, z_s, x~, w and the classes of one batch, and g_guided(z_s) - x~."""
        part, labels = {name: array[:, i] for name, array in draws.items()}, batch["condition"][:, i]
        z_t = method.noised_data({"images": batch["images"][:, i]}, part)
        x = (z_t.flatten(1) @ eta["A"].T + eta["b"][labels]).detach()
        z_s = method.transition(z_t, x.reshape(z_t.shape), part).flatten(1)
        conditional, unconditional = (z_s @ theta["A"].T + theta["b"][c] for c in (labels, torch.full((count,), none)))
        g = conditional + guidance * (conditional - unconditional)
        w = CLOCK(part["s"]).logsnr.exp() + 4 if weight == "edm" else 1 / (x - g).abs().mean(dim=1)
        assert (conditional - g).abs().max() > 0.1
        return z_t.flatten(1), z_s, w, labels, g - x

    _, z_s, w, labels, gap = half(0)
    moment = {"A": torch.einsum("b,bi,bj->ij", w, gap, z_s), "b": torch.zeros(none + 1, size).double()}
    for j in range(none):
        moment["b"][j] = (w[labels == j, None] * gap[labels == j]).sum(dim=0)
    for name, value in moment.items():
        torch.testing.assert_close(nu[name], 2 * lam[name] * value / count, rtol=1e-9, atol=1e-12)
    assert not nu["b"][none].any()
    z_t, z_s, w, labels, gap = half(1)
    slope = z_s @ nu["A"].T + nu["b"][labels]
    assert loss.item() == pytest.approx((w * (gap * slope).sum(dim=1)).mean().item(), rel=1e-9)
    torch.testing.assert_close(gradient, -torch.einsum("b,bi,bj->ij", w, slope, z_t) / count, rtol=1e-9, atol=1e-12)
