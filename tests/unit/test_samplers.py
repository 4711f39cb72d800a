"""The sampler families, their steps, and images that do not depend on the batch size."""

from functools import partial

import numpy as np
import pytest

from harness.backends import get_backend
from harness.diffusion import CosineClock, KarrasClock, Level
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
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
        sampling_step(clock, family, 0.0, bound, 3, lambda z, t, labels: X, Z, t, s, labels, EPS)[0]
        for bound in (1.0, 0.0)
    )
    assert np.array_equal(wide, narrow) == (family != "ancestral")


def test_each_step_gets_its_own_noise_and_the_sample_is_the_last_prediction() -> None:
    calls: list[tuple[np.ndarray, ...]] = []

    def step(*arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(arrays)
        return arrays[0] + 1, np.full_like(arrays[0], len(calls))

    ((x, labels),) = draw_images(step, np.asarray, equal_times(4), (1, 2, 2), 3, 5, 8, 0, stochastic=True)
    assert np.all(x == 4)
    np.testing.assert_array_equal(labels, [0, 1, 2, 0, 1])
    z, t, s, _, eps = zip(*calls, strict=True)
    assert [a.tolist() for a in t] == [[v] * 5 for v in (1, 0.75, 0.5, 0.25)]
    assert [a.tolist() for a in s] == [[v] * 5 for v in (0.75, 0.5, 0.25, 0)]
    np.testing.assert_array_equal(z[0], Noise(0).normal("sample/start", 0, 0, 5, (1, 2, 2)))
    np.testing.assert_array_equal(z[3], z[0] + 3)
    values = np.concatenate([z[0].ravel(), *(e.ravel() for e in eps[:3])])
    assert len(np.unique(values)) == len(values), "no noise is used twice"


@pytest.mark.parametrize(("name", "count"), [("torch", 70), ("jax", 7 * 64)])  # no ragged batch: a compilation less
def test_batches_of_7_and_of_64_give_the_same_images(
    name: str, count: int, spec: TransformerSpec, weights: dict[str, np.ndarray]
) -> None:
    backend, clock = get_backend(name), CosineClock()
    step = backend.denoiser_step(
        spec, weights, partial(sampling_step, clock, "ancestral", 0.0, 0.0, spec.num_classes), clock
    )
    results = []
    for batch in (7, 64):
        drawn = draw_images(step, backend.to_numpy, equal_times(3), (1, 4, 4), 3, count, batch, 0, stochastic=True)
        images, labels = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        results.append((images, labels))
    (a, labels_a), (b, labels_b) = results
    assert a.shape == (count, 1, 4, 4)
    np.testing.assert_array_equal(labels_a, np.arange(count) % 3)
    np.testing.assert_array_equal(labels_a, labels_b)
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(a[:7] - a[7:14]).max() > 0.1, "batches must differ from one another"
