"""Progressive distillation: its target in exact arithmetic, and students that are fitted in closed form.

For Gaussian data the exact denoiser is linear at each time, and so are the two-step maps; a student with linear
coefficients for each of its times can reach them, and the chain of students the probability-flow ODE's own map.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.progressive import Progressive, ProgressiveOptions, merged_prediction
from harness.backends.torch import TorchOps
from harness.diffusion import CosineClock, Level, ddim, v_from_x
from harness.errors import UserError
from harness.method import bind
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from tests.oracle.mixture import MIXTURE, Mixture

CLOCK = CosineClock(logsnr_min=-20.0, logsnr_max=20.0)
GAUSSIAN = Mixture(np.array([1.0]), np.array([[0.3, -0.2]]), np.array([[0.05, 0.4]]))
SPEC = TransformerSpec(channels=2, size=1, patch=1, width=2, depth=1, heads=1, num_classes=1)
STEPS = [8, 4, 2, 1]
BATCH = 500
Model = Callable[[Tensor, Tensor, Tensor], Tensor]


def make(k: int, weight: str) -> Progressive:
    return Progressive(k, 100, CLOCK, ProgressiveOptions(weight=weight), SPEC)


def teacher(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return torch.from_numpy(GAUSSIAN.denoise(z.numpy(), CLOCK(t.numpy())))


def linear(coefficients: Tensor) -> Model:
    """x_hat = (1, z) c_i at the i-th of len(coefficients) equal times: coefficients (k, 3, 2)."""

    def apply(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        i = (t * len(coefficients)).round().long() - 1
        inputs = torch.cat([torch.ones(len(z), 1, dtype=z.dtype), z.reshape(len(z), 2)], dim=1)
        return torch.einsum("bi,bij->bj", inputs, coefficients[i]).reshape(z.shape)

    return apply


def fitted(k: int, parent: Model, weight: str) -> Model:
    """The linear student of k steps at the minimum of the method's own loss, a convex quadratic."""
    method = make(k, weight)
    draws = {name: torch.from_numpy(value).double() for name, value in method.draw(Noise(0), 0, 0, BATCH).items()}
    images = torch.from_numpy(GAUSSIAN.draw(np.random.default_rng(k), BATCH).reshape(BATCH, 2, 1, 1))
    batch = {"images": images, "condition": torch.zeros(BATCH, dtype=torch.int64)}

    def loss(flat: Tensor) -> Tensor:
        nets = {"parent": parent, "student": linear(flat.reshape(k, 3, 2))}
        return method.loss("student", nets, batch, draws, None, TorchOps())[0]

    zero = torch.zeros(6 * k, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(loss, zero)
    curvature = torch.autograd.functional.hessian(loss, zero, vectorize=True)
    return linear(-torch.linalg.solve(curvature, slope).reshape(k, 3, 2))


def step(model: Model, z: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
    """z_s by DDIM, and x_hat."""
    times, to = (torch.full((len(z),), value, dtype=torch.float64) for value in (t, s))
    x = model(z, times, times)
    return ddim(z, x, CLOCK(times), CLOCK(to)), x


def sample(model: Model, z: Tensor, k: int) -> Tensor:
    """The last x_hat of k DDIM steps."""
    x = z
    for i in range(k, 0, -1):
        z, x = step(model, z, i / k, (i - 1) / k)
    return x


def points(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((50, 2, 1, 1)))


def levels(dtype: type) -> tuple[Level, Level, Level]:
    """t > m > s: steps from a tenth of the clock to a thousandth."""
    end, length = np.repeat(np.linspace(0, 0.9, 10), 3), np.tile([0.1, 0.01, 0.001], 10)
    t, m, s = (CosineClock()(time.astype(dtype)) for time in (end + length, end + length / 3, end))
    return t, m, s


def textbook(z_t: np.ndarray, x_t: np.ndarray, x_m: np.ndarray, t: Level, m: Level, s: Level) -> np.ndarray:
    """Salimans & Ho 2022, Algorithm 2, with two steps of equation 8."""

    def column(values: np.ndarray) -> np.ndarray:
        return values[:, None, None, None]

    z_m = column(m.alpha) * x_t + column(m.sigma / t.sigma) * (z_t - column(t.alpha) * x_t)
    z_s = column(s.alpha) * x_m + column(s.sigma / m.sigma) * (z_m - column(m.alpha) * x_m)
    ratio = s.sigma / t.sigma
    return (z_s - column(ratio) * z_t) / column(s.alpha - ratio * t.alpha)


def test_the_target_is_the_textbooks() -> None:
    t, m, s = levels(np.float64)
    z_t, x_t, x_m = np.random.default_rng(0).standard_normal((3, 30, 1, 2, 2))
    target = merged_prediction(x_t, x_m, t, m, s)
    np.testing.assert_allclose(target, textbook(z_t, x_t, x_m, t, m, s), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ddim(z_t, target, t, s), ddim(ddim(z_t, x_t, t, m), x_m, m, s), rtol=1e-12, atol=1e-12)


def test_the_target_keeps_its_digits_in_float32() -> None:
    """At the same float32 levels: a thousandth of the clock costs the textbook's formula three digits."""
    z_t, x_t, x_m = np.random.default_rng(1).standard_normal((3, 30, 1, 2, 2)).astype(np.float32)
    t, m, s = levels(np.float32)
    wide = [Level(*(values.astype(float) for values in level)) for level in (t, m, s)]
    exact = merged_prediction(x_t.astype(float), x_m.astype(float), wide[0], wide[1], wide[2])
    assert np.abs(merged_prediction(x_t, x_m, t, m, s) - exact).max() < 5e-7
    assert np.abs(textbook(z_t, x_t, x_m, t, m, s) - exact).max() > 1e-4


@pytest.mark.parametrize("weight", ["truncated-snr", "flat"])
def test_a_linear_student_reaches_the_two_step_map(weight: str) -> None:
    k = 4
    student = fitted(k, teacher, weight)
    for i in range(k):
        t, m, s = (i + 1) / k, (i + 0.5) / k, i / k
        z = points(i)
        z_m, _ = step(teacher, z, t, m)
        z_s, x_m = step(teacher, z_m, m, s)
        found, x = step(student, z, t, s)
        expected = (found, z_s) if i > 0 else (x, x_m)  # the sample is the last x_hat
        torch.testing.assert_close(*expected, rtol=0, atol=1e-8)


def chain(steps: list[int]) -> Model:
    """The last student of the chain that `Progressive.parent` describes."""
    fits: dict[str | None, Model] = {None: teacher}
    for name, (k,) in Progressive.students(steps).items():
        fits[name] = fitted(k, fits[Progressive.parent(name, steps)], "flat")
    return fits[f"k{min(steps)}"]


def test_the_chain_converges_to_the_map_of_the_ode() -> None:
    """One step of the last student is the teacher's own 2K steps, and tends to the ODE's map as 1/K."""
    z, errors = points(9), []
    one = torch.ones(1, dtype=torch.float64)
    start, end = CLOCK(one), CLOCK(0 * one)
    mean, variance = torch.from_numpy(GAUSSIAN.mean), torch.from_numpy(GAUSSIAN.variances[0])
    spread = [level.alpha**2 * variance + level.sigma**2 for level in (start, end)]
    exact = end.alpha * mean + (spread[1] / spread[0]).sqrt() * (z.reshape(-1, 2) - start.alpha * mean)
    for largest in (8, 16, 32):
        steps = [largest >> n for n in range(largest.bit_length())]
        found = sample(chain(steps), z, 1)
        torch.testing.assert_close(found, sample(teacher, z, 2 * largest), rtol=0, atol=1e-7)
        errors.append((found.reshape(-1, 2) - exact).abs().max().item())
    ratios = np.array(errors[1:]) / errors[:-1]
    assert np.all((ratios > 0.4) & (ratios < 0.6)), errors
    assert errors[-1] < 0.05


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_times_are_those_of_the_samplers_of_student_and_parent(k: int) -> None:
    draws = make(k, "flat").draw(Noise(0), 0, 0, 2000)
    student, parent = (np.array([*Progressive.times(n), 0.0], np.float32) for n in (k, 2 * k))
    pairs = np.stack([draws["t"], draws["s"]])
    values, counts = np.unique(pairs, axis=1, return_counts=True)
    np.testing.assert_array_equal(values[:, ::-1], [student[:-1], student[1:]])
    assert np.abs(counts - 2000 / k).max() <= 4.5 * (2000 / k) ** 0.5
    np.testing.assert_array_equal(np.unique(draws["m"])[::-1], parent[1::2])


@pytest.mark.parametrize("weight", [1.5, 0.0])
def test_the_parent_is_guided_where_it_is_the_teacher_and_no_more_where_it_is_a_student(weight: float) -> None:
    """`weight` is the parent's guidance; that of a teacher further up the chain is in the parent already."""
    k, none, count = 2, len(MIXTURE.weights), 60
    spec = replace(SPEC, num_classes=none)
    method = Progressive(k, 100, CLOCK, ProgressiveOptions(weight="flat"), spec, {"teacher": 1.5, "parent": weight})
    exact = MIXTURE.denoiser(CLOCK)

    def denoise(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.from_numpy(exact(z.numpy(), t.numpy(), labels.numpy()))

    def network(scale: float, z: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, None]:
        return v_from_x(z, scale * denoise(z, t, labels), CLOCK(t)), None

    def guided(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        conditional, unconditional = denoise(z, t, labels), denoise(z, t, torch.full_like(labels, none))
        return (1 + weight) * conditional - weight * unconditional

    draws = {name: torch.from_numpy(value).double() for name, value in method.draw(Noise(0), 0, 0, count).items()}
    images = torch.from_numpy(MIXTURE.draw(np.random.default_rng(0), count).reshape(count, 2, 1, 1))
    batch = {"images": images, "condition": torch.arange(count) % none}
    nets = bind(method, method.networks(), network, {"parent": 1.0, "student": 0.5})
    by_hand = {"parent": guided, "student": lambda *inputs: 0.5 * denoise(*inputs)}
    found, expected = (method.loss("student", each, batch, draws, None, TorchOps())[0] for each in (nets, by_hand))
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    plain = method.loss("student", by_hand | {"parent": denoise}, batch, draws, None, TorchOps())[0]
    assert (abs(plain - expected) > 1e-3 * expected) == (weight > 0)


def test_each_stage_halves_the_one_before() -> None:
    names = Progressive.students([1, 8, 2, 4])
    parents = {name: Progressive.parent(name, [1, 8, 2, 4]) for name in names}
    assert parents == {"k8": None, "k4": "k8", "k2": "k4", "k1": "k2"}


@pytest.mark.parametrize(("steps", "missing"), [([8, 4, 1], "lack 2,"), ([8, 2], "lack 4,"), ([6, 4], "lack 8,")])
def test_a_hole_in_the_chain_is_named(steps: list[int], missing: str) -> None:
    with pytest.raises(UserError, match=missing) as error:
        Progressive.students(steps)
    assert "\n" not in str(error.value)
