"""Teacher training: its times, hidden labels, loss and average."""

import numpy as np
import pytest
from scipy import stats

from harness.backends import get_backend
from harness.backends.base import Adam
from harness.diffusion import Array, CosineClock
from harness.method import Denoiser
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from harness.teacher import Teacher, TeacherOptions
from tests.conftest import SPEC, generic_weights, random_batch

NOISE = Noise(0)
CLASSES = SPEC.num_classes


def teacher(**options: float | str) -> Teacher:
    return Teacher(1, 100, CosineClock(), TeacherOptions(**options), SPEC)


def test_the_times_of_a_sample_are_uniform_over_steps() -> None:
    times = np.concatenate([teacher().draw(NOISE, step, 77, 1)["t"] for step in range(3000)])
    assert times.dtype == np.float32
    assert stats.kstest(times, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(times[1:], times[:-1])[0, 1]) < 4 / 3000**0.5


def test_the_times_of_a_step_are_uniform_and_do_not_depend_on_how_its_batch_is_split() -> None:
    times = teacher().draw(NOISE, 5, 0, 3000)["t"]
    assert stats.kstest(times, "uniform").pvalue > 0.01
    parts = [teacher().draw(NOISE, 5, start, 1000)["t"] for start in (0, 1000, 2000)]
    np.testing.assert_array_equal(np.concatenate(parts), times)


def test_labels_are_hidden_at_the_given_rate() -> None:
    for rate in (0.0, 0.1, 1.0):
        hidden = np.concatenate([teacher(label_dropout=rate).draw(NOISE, s, 0, 100)["hide"] for s in range(100)])
        assert abs(hidden.mean() - rate) <= 4 * (rate * (1 - rate) / hidden.size) ** 0.5


@pytest.mark.parametrize("name", ["flat", "snr+1"])
def test_the_loss_is_the_weighted_error_of_a_network_that_sees_hidden_labels(name: str) -> None:
    method, batch = teacher(weight=name), random_batch(SPEC, 50)
    draws = method.draw(NOISE, 0, 0, 50)
    draws["hide"] = np.arange(50) % 4 == 0
    seen = {}

    def network(params: None, z: Array, t: Array, condition: Array) -> tuple[Array, None]:
        seen.update(z=z, t=t, condition=condition)
        return 0.1 * z, None

    loss, logs = method.loss(
        "denoise", {"model": Denoiser(network, None, method.clock, CLASSES)}, batch, draws, None, None
    )
    np.testing.assert_array_equal(seen["condition"], np.where(draws["hide"], CLASSES, batch["condition"]))
    np.testing.assert_array_equal(seen["t"], draws["t"])
    angle = np.arctan(np.exp(-0.5 * method.clock(draws["t"].astype(np.float64)).logsnr)).reshape(-1, 1, 1, 1)
    x, eps = batch["images"], draws["eps"]
    z, v = np.cos(angle) * x + np.sin(angle) * eps, np.cos(angle) * eps - np.sin(angle) * x
    np.testing.assert_allclose(seen["z"], z, atol=1e-5)
    in_v = ((v - 0.1 * z) ** 2).sum(axis=(1, 2, 3))
    in_x = np.sin(angle).ravel() ** 2 * in_v
    assert loss == pytest.approx((in_v if name == "snr+1" else in_x).mean(), rel=1e-4)
    assert logs["squared_error"] == pytest.approx(in_x.mean(), rel=1e-4)


def test_the_averages_window_grows_to_its_decay() -> None:
    decay = teacher(ema_decay=0.999).networks()["teacher"].decay
    assert [decay(step) for step in (0, 1, 8, 90, 10**5)] == pytest.approx([0.1, 2 / 11, 0.5, 0.91, 0.999])
    assert teacher(ema_decay=0.0).networks()["teacher"].decay(500) == 0


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_the_average_follows_its_recursion_and_never_changes_the_live_weights(
    name: str,
) -> None:
    method, spec = teacher(), TransformerSpec(1, 4, 4, 8, depth=1, heads=2, num_classes=CLASSES)
    weights = generic_weights(spec, 0)
    adam = Adam(beta1=0.9, beta2=0.99, eps=1e-8, clip=1.0)
    learner = get_backend(name).learner(method, spec, {"model": weights, "teacher": weights}, adam)
    start, batch = learner.state(), random_batch(spec, 8)
    lives = []
    for decay in (0.0, 0.7):
        learner.restore(start)
        live, average = [], {key: value.astype(np.float64) for key, value in weights.items()}
        for step in range(3):
            learner.update("denoise", batch, method.draw(NOISE, step, 0, 8), 1e-2, {"teacher": decay})
            live.append(learner.weights("model"))
            average = {key: decay * value + (1 - decay) * live[-1][key] for key, value in average.items()}
        for key, value in learner.weights("teacher").items():
            np.testing.assert_allclose(value, average[key], atol=1e-6)
        lives.append(live)
    for with_none, with_average in zip(*lives, strict=True):
        for key, value in with_none.items():
            np.testing.assert_array_equal(with_average[key], value)
    assert all(not np.array_equal(lives[0][0][key], weights[key]) for key in weights), "every tensor must have moved"
