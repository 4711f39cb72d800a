"""The sampler families, their steps, and images that do not depend on the batch size."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from harness.backends import BACKENDS, get_backend
from harness.conditions import Text
from harness.diffusion import CosineClock, KarrasClock, Level
from harness.method import Denoiser
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from harness.prompts import class_prompts
from harness.samplers import (
    FAMILIES,
    Transition,
    ancestral,
    ddim_step,
    draw_images,
    equal_times,
    renoise,
    sampling_step,
)
from tests.conftest import generic_weights, random_batch

CLEAN = Level.from_logsnr(np.full(3, np.inf))
MIDDLE, LOW = Level.from_logsnr(np.array([-2.0, 0.0, 1.0])), Level.from_logsnr(np.array([-1.5, 3.0, 4.0]))
Z, X, EPS, OTHER = np.random.default_rng(0).standard_normal((4, 3, 1, 2, 2))


@pytest.mark.parametrize("family", [ancestral, ddim_step, renoise])
def test_a_step_to_clean_data_returns_x(family: Transition) -> None:
    np.testing.assert_allclose(family(Z, X, MIDDLE, CLEAN, EPS), X, rtol=1e-14)


def test_what_each_family_forgets() -> None:
    """Renoise forgets z_t, DDIM draws nothing, ancestral sampling depends on both."""
    changed = {
        name: (
            not np.array_equal(family(Z, X, MIDDLE, LOW, EPS), family(OTHER, X, MIDDLE, LOW, EPS)),
            not np.array_equal(family(Z, X, MIDDLE, LOW, EPS), family(Z, X, MIDDLE, LOW, OTHER)),
        )
        for name, family in FAMILIES.items()
    }
    assert changed == {"ancestral": (True, True), "ddim": (True, False), "renoise": (False, True)}


def test_renoise_is_the_forward_process() -> None:
    alpha, sigma = (a.reshape(3, 1, 1, 1) for a in LOW[1:])
    np.testing.assert_array_equal(renoise(Z, X, MIDDLE, LOW, EPS), alpha * X + sigma * EPS)


def test_equal_times() -> None:
    assert equal_times(1) == [1]
    np.testing.assert_allclose(equal_times(8), 1 - np.arange(8) / 8, rtol=1e-15)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_upper_bound_widens_ancestral_steps_alone(family: str) -> None:
    clock, labels = KarrasClock(), np.zeros(3, int)
    t, s = np.full(3, 0.6), np.full(3, 0.4)
    wide, narrow = (
        sampling_step(clock, family, bound, lambda z, t, labels: X, Z, t, s, labels, EPS)[0] for bound in (1.0, 0.0)
    )
    assert np.array_equal(wide, narrow) == (family != "ancestral")


def test_each_step_gets_its_own_noise_and_the_sample_is_the_last_prediction() -> None:
    calls: list[tuple[np.ndarray, ...]] = []

    def step(*arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(arrays)
        return arrays[0] + 1, np.full_like(arrays[0], len(calls))

    given = class_prompts(3).condition
    (x,) = draw_images(step, np.asarray, equal_times(4), (1, 2, 2), given, 5, 8, 0, stochastic=True)
    assert np.all(x == 4)
    z, t, s, conditions, eps = zip(*calls, strict=True)
    assert [labels.tolist() for labels in conditions] == [[0, 1, 2, 0, 1]] * 4
    assert [a.tolist() for a in t] == [[v] * 5 for v in (1, 0.75, 0.5, 0.25)]
    assert [a.tolist() for a in s] == [[v] * 5 for v in (0.75, 0.5, 0.25, 0)]
    np.testing.assert_array_equal(z[0], Noise(0).normal("sample/start", 0, 0, 5, (1, 2, 2)))
    np.testing.assert_array_equal(z[3], z[0] + 3)
    values = np.concatenate([z[0].ravel(), *(e.ravel() for e in eps[:3])])
    assert len(np.unique(values)) == len(values), "no noise is used twice"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text_width", [0, 8], ids=["classes", "captions"])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_step_of_a_guided_denoiser_is_two_calls_and_one_transition(
    name: str, text_width: int, family: str, spec: TransformerSpec
) -> None:
    """The prediction of "none" is asked for with the last class, or without a token."""
    spec, guidance, clock = replace(spec, text_width=text_width), 1.5, CosineClock()
    weights, backend, batch = generic_weights(spec, 0), get_backend(name), random_batch(spec, 6)
    condition, t, s = batch["condition"], np.full(6, 0.6, np.float32), np.full(6, 0.3, np.float32)
    nothing = Text(condition.tokens, condition.mask & False) if text_width else np.full(6, spec.num_classes)
    z, eps = (Noise(0).normal(purpose, 0, 0, 6, (1, 4, 4)) for purpose in ("z", "eps"))
    step = backend.denoiser_step(spec, weights, partial(sampling_step, clock, family, 0.25), clock, guidance)
    call = backend.denoiser_step(spec, weights, Denoiser.__call__, clock)
    g_c, g_u = (backend.to_numpy(call(z, t, given)).astype(np.float64) for given in (condition, nothing))
    expected = g_c + guidance * (g_c - g_u)
    z_s, x = map(backend.to_numpy, step(z, t, s, condition, eps))
    assert np.abs(expected - g_c).max() > 0.1
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5)
    options = {"upper_bound": 0.25} if family == "ancestral" else {}
    moved = FAMILIES[family](z, expected, clock(t), clock(s), eps, **options)
    np.testing.assert_allclose(z_s, moved, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "count"), [("torch", 70), ("jax", 7 * 64)])  # no ragged batch: a compilation less
def test_batches_of_7_and_of_64_give_the_same_images(
    name: str, count: int, spec: TransformerSpec, weights: dict[str, np.ndarray]
) -> None:
    backend, clock = get_backend(name), CosineClock()
    step = backend.denoiser_step(spec, weights, partial(sampling_step, clock, "ancestral", 0.0), clock)
    results, asked = [], []

    def conditions(start: int, n: int) -> np.ndarray:
        asked.append(class_prompts(3).condition(start, n))
        return asked[-1]

    for batch in (7, 64):
        asked.clear()
        shape = 1, 4, 4
        drawn = draw_images(step, backend.to_numpy, equal_times(3), shape, conditions, count, batch, 0, stochastic=True)
        results.append(np.concatenate(list(drawn)))
        np.testing.assert_array_equal(np.concatenate(asked), np.arange(count) % 3)
    a, b = results
    assert a.shape == (count, 1, 4, 4)
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(a[:7] - a[7:14]).max() > 0.1, "batches must differ from one another"
