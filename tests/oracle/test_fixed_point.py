"""Algorithm 2 on a Gaussian mixture: its fixed point is the exact student, and the signs of its two gradients.

A student that draws x~ from q(x | z_t) makes (x~, z_s) distributed as data and its noised version, so the auxiliary's
optimum (E[x~ | z_s] + g_theta) / 2 is g_theta and the student's expected gradient is zero. The auxiliary is a linear
model that is fitted by minimising the method's own loss on one sample; the gradient is measured on another.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.backends.torch import TorchOps
from harness.diffusion import CosineClock
from harness.moment_matching import AlternatingMomentMatching, MomentMatchingOptions
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from tests.oracle.mixture import MIXTURE

CLOCK = CosineClock()
BATCH, REPLICATES = 4000, 24
Student = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
SHIFT = np.array([0.1, -0.05])


def exact(rng: np.random.Generator, z: np.ndarray, t: np.ndarray) -> np.ndarray:
    return MIXTURE.draw_posterior(rng, z, CLOCK(t))


def shifted(rng: np.random.Generator, z: np.ndarray, t: np.ndarray) -> np.ndarray:
    return exact(rng, z, t) + SHIFT[:, None, None]


def denoising(rng: np.random.Generator, z: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The teacher itself, with which every student starts."""
    return MIXTURE.denoise(z, CLOCK(t))


def teacher(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return torch.from_numpy(MIXTURE.denoise(z.detach().numpy(), CLOCK(t.numpy())))


def features(z: Tensor, t: Tensor) -> Tensor:
    """(batch, 8): a constant, z, its squares, the time, and the teacher's prediction, which is the exact optimum."""
    flat = z.reshape(len(z), 2)
    return torch.cat([torch.ones_like(t)[:, None], flat, flat**2, t[:, None], teacher(flat, t, t)], dim=1)


def linear(coefficients: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda z, t, labels: (features(z, t) @ coefficients).reshape(z.shape)


def sample(method: AlternatingMomentMatching, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch of data and the method's draws, in float64."""
    images = MIXTURE.draw(np.random.default_rng([1, step]), BATCH).reshape(BATCH, 2, 1, 1)
    draws = {key: torch.from_numpy(value).double() for key, value in method.draw(Noise(0), step, 0, BATCH).items()}
    return {"images": torch.from_numpy(images), "condition": torch.zeros(BATCH, dtype=torch.int64)}, draws


def minimiser(loss: Callable[[Tensor], Tensor], zero: Tensor) -> Tensor:
    """Where a convex quadratic is least, from its derivatives at zero."""
    slope = torch.autograd.functional.jacobian(loss, zero).reshape(-1)
    curvature = torch.autograd.functional.hessian(loss, zero).reshape(len(slope), len(slope))
    assert torch.all(torch.linalg.eigvalsh(curvature) > 0)
    return -torch.linalg.solve(curvature, slope).reshape(zero.shape)


def student_gradients(method: AlternatingMomentMatching, student: Student) -> np.ndarray:
    """(REPLICATES, 10): student gradients at the auxiliary's optimum, in eta of x~ + features(z_t, t) eta.

    Of eta (8, 2) the rows of the constant, z and its squares.
    """
    rng = np.random.default_rng(0)

    def nets(coefficients: Tensor, eta: Tensor) -> dict[str, Callable[..., Tensor]]:
        def perturbed(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            return torch.from_numpy(student(rng, z.numpy(), t.numpy())) + linear(eta)(z, t, labels)

        return {"student": perturbed, "teacher": teacher, "auxiliary": linear(coefficients)}

    def optimal_auxiliary(step: int) -> Tensor:
        (batch, draws), state = sample(method, step), rng.bit_generator.state

        def loss(coefficients: Tensor) -> Tensor:
            rng.bit_generator.state = state  # the same x~ whenever the loss is evaluated
            nets_now = nets(coefficients, torch.zeros_like(coefficients))
            return method.loss("auxiliary", nets_now, batch, draws, None, TorchOps())[0]

        return minimiser(loss, torch.zeros(8, 2, dtype=torch.float64))

    def gradient(step: int) -> np.ndarray:
        auxiliary = optimal_auxiliary(2 * step)
        batch, draws = sample(method, 2 * step + 1)
        eta = torch.zeros_like(auxiliary, requires_grad=True)
        loss, _ = method.loss("student", nets(auxiliary, eta), batch, draws, None, TorchOps())
        return torch.autograd.grad(loss, eta)[0][:5].reshape(-1).numpy()

    return np.stack([gradient(step) for step in range(REPLICATES)])


def z_scores(gradients: np.ndarray) -> np.ndarray:
    """Means of the columns, in their standard errors."""
    return gradients.mean(axis=0) / (gradients.std(axis=0, ddof=1) / len(gradients) ** 0.5)


# two channels of one pixel: the mixture's two dimensions
SPEC = TransformerSpec(channels=2, size=1, patch=1, width=2, depth=1, heads=1, num_classes=len(MIXTURE.weights))


def make(transition: str, weight: str = "flat") -> AlternatingMomentMatching:
    options = MomentMatchingOptions(transition=transition, weight=weight)
    return AlternatingMomentMatching(2, 100, CLOCK, options, SPEC)


@pytest.mark.parametrize("transition", ["posterior", "unconditional", "ddim"])
def test_the_exact_student_is_a_fixed_point_and_wrong_ones_are_not(transition: str) -> None:
    method = make(transition)
    assert np.abs(z_scores(student_gradients(method, exact))).max() < 4
    for wrong in (denoising, shifted):
        assert np.abs(z_scores(student_gradients(method, wrong))).max() > 10


def test_the_gradient_undoes_a_shift() -> None:
    gradients = student_gradients(make("posterior"), shifted)
    assert np.all(z_scores(gradients[:, :2] * SHIFT) > 4), "descent must move x~ back"


@pytest.mark.parametrize("weight_name", ["edm", "flat", "dmd-adaptive"])
def test_the_gradient_in_x_is_the_weighted_gap(weight_name: str) -> None:
    """w (g_phi - g_theta) and nothing else: neither z_s nor w carries a gradient."""
    method = make("posterior", weight_name)
    batch, draws = sample(method, 0)
    x_leaf = torch.full((BATCH, 2, 1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    auxiliary = linear(torch.arange(16, dtype=torch.float64).reshape(8, 2) / 16)
    seen: list[Tensor] = []

    def watched(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        seen.append(z)
        return teacher(z, t, labels)

    nets = {"student": lambda z, t, labels: x_leaf, "teacher": watched, "auxiliary": auxiliary}
    loss, _ = method.loss("student", nets, batch, draws, None, TorchOps())
    gradient = torch.autograd.grad(loss, x_leaf)[0]
    (z_s,), s = seen, draws["s"]
    g_theta, g_phi = teacher(z_s, s, s), auxiliary(z_s, s, s)
    w = {"flat": torch.ones_like(s), "edm": CLOCK(s).alpha ** 2 / CLOCK(s).sigma ** 2 + 4,
         "dmd-adaptive": 1 / (x_leaf.detach() - g_theta).abs().mean(dim=(1, 2, 3))}[weight_name]  # fmt: skip
    expected = w[:, None, None, None] * (g_phi - g_theta) / BATCH
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-9, atol=1e-12)
    step = -gradient
    assert (step * (g_theta - g_phi)).sum() > 0, "descent moves x~ along g_theta - g_phi"


def test_a_constant_auxiliary_minimises_at_the_weighted_average() -> None:
    """sum w (x~ + g_theta) / (2 sum w), with x~ and z_s as constants."""
    method, students = make("posterior", "edm"), torch.full((BATCH, 2, 1, 1), 0.3, dtype=torch.float64)
    batch, draws = sample(method, 0)
    seen: list[Tensor] = []

    def watched(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        seen.append(teacher(z, t, labels))
        return seen[-1]

    def loss(constant: Tensor) -> Tensor:
        nets = {"student": lambda z, t, labels: students, "teacher": watched,
                "auxiliary": lambda z, t, labels: constant[:, None, None].expand(z.shape)}  # fmt: skip
        return method.loss("auxiliary", nets, batch, draws, None, TorchOps())[0]

    found = minimiser(loss, torch.zeros(2, dtype=torch.float64))
    w = (CLOCK(draws["s"]).logsnr.exp() + 4)[:, None]
    average = (w * (students + seen[0]).reshape(BATCH, 2) / 2).sum(dim=0) / w.sum()
    torch.testing.assert_close(found, average, rtol=1e-9, atol=1e-9)
