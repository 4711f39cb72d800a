"""What every method must keep, whatever it does: the registry names the methods, and the contract asks the questions.

A new method is tested here on both backends without an edit.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import torch
from jax.experimental.compilation_cache import compilation_cache

from harness.backends import BACKENDS, get_backend
from harness.backends.base import Adam, Learner, Update, Weights
from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.config import MethodConfig
from harness.diffusion import CosineClock
from harness.errors import UserError
from harness.method import Average, CopyOf, Head, Method, Preconditioner, Pretrained, Start, Turn
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from harness.prompts import class_prompts
from harness.registry import registry
from harness.samplers import FAMILIES, draw_images, sampling_step
from harness.training import grouped
from tests.conftest import SPEC, generic_weights, random_batch
from tests.contract.counted import network_calls
from tests.contract.perceptual import PerceptualDMD
from tests.contract.probe import Probe
from tests.contract.replay import ReplayedLoss

TINY = replace(SPEC, depth=1)
CAPTIONED = replace(TINY, text_width=8)
ADAM = Adam(beta1=0.5, beta2=0.99, eps=1e-8, clip=0.5)
BATCH, RATE = 8, 1e-3
KINDS = "forward", "gradient", "input_gradient", "jvp"
METHODS: dict[str, type[Method]] = {**registry(), Probe.id: Probe, PerceptualDMD.id: PerceptualDMD}
STEPS = [8, 4, 2, 1], [1]
"""What profiles ask for; every method takes one of them, and may refuse others."""


def students(method_id: str, steps: list[int]) -> dict[str, list[int]] | None:
    """The students of these step counts; None where the method refuses them."""
    try:
        return METHODS[method_id].students(steps)
    except UserError:
        return None


def step_counts(method_id: str) -> list[int]:
    """What one student is sampled at: the one for two steps, or for one where the method takes no more."""
    for steps in STEPS:
        if (found := students(method_id, steps)) is not None:
            return next(counts for counts in found.values() if min(2, max(steps)) in counts)
    raise AssertionError(f"{method_id} takes none of {STEPS}")


def make(method_id: str, spec: TransformerSpec = TINY, guidance: float = 0.0) -> Method:
    """That student, with every teacher that it is distilled from guided."""
    method, weights = METHODS[method_id], {"teacher": guidance, "parent": guidance}
    return method(max(step_counts(method_id)), 100, CosineClock(), method.Options(), spec, weights)


def teachers(method: Method) -> list[str]:
    """The networks that are distilled: never trained, and guided where the run is."""
    trained = {name for turn in method.turns.values() for name in turn.trains}
    return [name for name, start in method.networks().items() if isinstance(start, CopyOf) and name not in trained]


def tolerance(turn: Turn) -> float:
    """How far the backends may differ, relative; the gradient of a Jacobian-vector product is a second derivative."""
    return 1e-4 if turn.jvp else 1e-5


TURNS = [(method_id, turn) for method_id in METHODS for turn in make(method_id).turns]
GIVEN = {"classes": (TINY, 0.0), "captions": (CAPTIONED, 1.5)}
"""What networks are conditioned on, and the guidance of the teacher."""
each_condition = pytest.mark.parametrize(("spec", "guidance"), GIVEN.values(), ids=GIVEN)


def starting_weights(method: Method) -> dict[str, Weights]:
    """Other generic weights for each network, so that no two can be mistaken for one another."""
    starts = method.networks()

    def generic(start: Start, seed: int) -> Weights:
        if isinstance(start, Average):
            return generic(starts[start.of], seed)
        if isinstance(start, Head):
            return {key: Noise(seed).normal(key, 0, 0, 1, shape)[0] for key, shape in start.shapes.items()}
        if isinstance(start, Pretrained):
            return start.read(start.files())
        weights = generic_weights(method.spec, seed)
        return {key: np.exp(x) for key, x in weights.items()} if isinstance(start, Preconditioner) else weights

    return {name: generic(start, seed) for seed, (name, start) in enumerate(starts.items())}


def examples(method: Method, turn: str, step: int) -> dict[str, Any]:
    """A turn's batch as the training loop makes it: several examples for a sample have an axis of their own."""
    assert set(method.sources) <= {"data", "pairs"}, "say here what a batch of the other sources holds"
    batch = {}
    for source in method.turns[turn].sources or method.sources:
        count = method.sources[source]
        arrays = random_batch(method.spec, BATCH * count, seed=step)
        if source == "pairs":
            arrays |= {"noise": Noise(step).normal("pairs", 0, 0, BATCH * count, arrays["images"].shape[1:])}
        prefix = "" if source == "data" else f"{source}/"
        for key, x in arrays.items():
            batch[prefix + key] = grouped(x, BATCH, count)
    return batch


def loss_and_gradients(backend: str, method: Method, turn: str) -> tuple[float, dict[str, Weights]]:
    """The loss and the gradients of one turn.

    Not with seed 1: so near to t = 0 float32 rounds consistency distillation's gradient by 1e-5, on either backend.
    """
    learner = get_backend(backend).learner(method, method.spec, starting_weights(method), ADAM)
    return learner.gradients(turn, examples(method, turn, 0), method.draw(Noise(2), 0, 0, BATCH))


def update(learner: Learner, step: int) -> Update:
    method = learner.method
    turn, draws = method.turn(step), method.draw(Noise(0), step, 0, BATCH)
    decays = {name: average.decay(step) for name, average in learner.averages.items()}
    return learner.update(turn, examples(method, turn, step), draws, RATE, decays)


def snapshot(learner: Learner) -> dict[str, Weights]:
    return {name: learner.weights(name) for name in learner.method.networks()}


def same(a: Any, b: Any) -> bool:
    """Whether two flat mappings of arrays hold the same bytes, in the same shapes and types."""

    def content(arrays: Any) -> dict[str, tuple[Any, ...]]:
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}

    return content(a) == content(b)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Learners of one method share JAX's compilations, which take seconds each, and half of that unoptimised."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("jax")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


@pytest.fixture
def optimised() -> Iterator[None]:
    """Compile as for training."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@dataclass
class Trial:
    """A few updates: all networks before the first and after each, what was measured, and the state after the first."""

    backend: str
    method: Method
    steps: int
    networks: list[dict[str, Weights]]
    updates: list[Update]
    state: dict[str, np.ndarray]
    final_state: dict[str, np.ndarray]

    def fresh_learner(self) -> Learner:
        return get_backend(self.backend).learner(self.method, TINY, starting_weights(self.method), ADAM)


@pytest.fixture(scope="module", params=itertools.product(METHODS, BACKENDS), ids="-".join)
def trial(request: pytest.FixtureRequest) -> Trial:
    """Three updates, or as many more as it takes until every turn had one."""
    method_id, backend = request.param
    method = make(method_id)
    first = {turn: next(step for step in range(1000) if method.turn(step) == turn) for turn in method.turns}
    steps = max(3, 1 + max(first.values()))
    learner = get_backend(backend).learner(method, TINY, starting_weights(method), ADAM)
    networks, updates, states = [snapshot(learner)], [], []
    for step in range(steps):
        updates.append(update(learner, step))
        networks.append(snapshot(learner))
        states.append(learner.state())
    return Trial(backend, method, steps, networks, updates, states[0], states[-1])


def test_an_update_changes_what_its_turn_trains_and_nothing_else(trial: Trial) -> None:
    networks = trial.method.networks()
    for step in range(trial.steps):
        trained = trial.method.turns[trial.method.turn(step)].trains
        before, after = trial.networks[step], trial.networks[step + 1]
        for name, start in networks.items():
            moved = {key for key in before[name] if before[name][key].tobytes() != after[name][key].tobytes()}
            moves = name in trained or (isinstance(start, Average) and start.of in trained)
            assert moved == (set(before[name]) if moves else set()), (step, name)


def test_an_average_follows_its_network(trial: Trial) -> None:
    for name, start in trial.method.networks().items():
        if not isinstance(start, Average):
            continue
        for step in range(trial.steps):
            if start.of in trial.method.turns[trial.method.turn(step)].trains:
                decay, live = start.decay(step), trial.networks[step + 1][start.of]
                for key, value in trial.networks[step][name].items():
                    expected = decay * value.astype(np.float64) + (1 - decay) * live[key]
                    np.testing.assert_allclose(trial.networks[step + 1][name][key], expected, rtol=0, atol=1e-6)


def test_an_update_measures_the_networks_that_it_trains(trial: Trial) -> None:
    for step, measured in enumerate(trial.updates):
        assert set(measured.gradient_norm) == set(trial.method.turns[trial.method.turn(step)].trains)
        values = [measured.loss, *measured.gradient_norm.values(), *measured.logs.values()]
        assert all(type(value) is float and np.isfinite(value) for value in values)


def test_the_gradient_norm_is_that_before_clipping(trial: Trial) -> None:
    """By PyTorch's gradients for both: JAX would compile its own once more."""
    method = trial.method
    learner, turn = get_backend("torch").learner(method, TINY, starting_weights(method), ADAM), method.turn(0)
    loss, gradients = learner.gradients(turn, examples(method, turn, 0), method.draw(Noise(0), 0, 0, BATCH))
    assert trial.updates[0].loss == pytest.approx(loss, rel=tolerance(method.turns[turn]))
    for name, gradient in gradients.items():
        norm = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in gradient.values()))
        assert trial.updates[0].gradient_norm[name] == pytest.approx(norm, rel=1e-4)


def test_a_restored_learner_goes_on_in_the_same_bytes(trial: Trial, tmp_path: Any) -> None:
    save_checkpoint(tmp_path / "state.safetensors", trial.state, {})
    learner = trial.fresh_learner()
    learner.restore(load_checkpoint(tmp_path / "state.safetensors")[0])
    assert same(learner.state(), trial.state)
    stored = {key.split("/")[1] for key in trial.state if key.startswith("network/")}
    starts = trial.method.networks()
    assert stored == {name for name in starts if not isinstance(starts[name], Pretrained)}, "what is published is kept"
    for step in range(1, trial.steps):
        update(learner, step)
    assert same(learner.state(), trial.final_state)
    for name, weights in trial.networks[-1].items():
        assert same(learner.weights(name), weights)


def test_the_same_seed_gives_the_same_bytes(trial: Trial) -> None:
    learner = trial.fresh_learner()
    assert update(learner, 0) == trial.updates[0]
    assert same(learner.state(), trial.state)


def test_its_result_is_saved_loaded_and_sampled_on_either_backend(trial: Trial, tmp_path: Any) -> None:
    method, path = trial.method, tmp_path / "result.safetensors"
    result = trial.networks[-1][method.result]
    save_checkpoint(path, result, {})
    weights, _ = load_checkpoint(path)
    assert same(weights, result)
    assert {name: value.shape for name, value in weights.items()} == TINY.shapes()
    family, images = method.family(method.options), []
    for name in BACKENDS:
        backend = get_backend(name)
        step = partial(sampling_step, method.clock, family, 0.0)
        denoise = backend.denoiser_step(TINY, weights, step, method.clock)
        sample = partial(draw_images, denoise, backend.to_numpy)
        settings = method.shape, class_prompts(TINY.num_classes).condition, 8, 8, 0, family != "ddim"
        images.append([next(sample(method.times(k), *settings)) for k in step_counts(method.id)])
    for a, b in zip(*images, strict=True):
        assert a.std() > 0.1
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(a)


@pytest.mark.usefixtures("optimised")
@each_condition
@pytest.mark.parametrize(("method_id", "turn"), TURNS)
def test_both_backends_agree_on_loss_and_gradient(
    method_id: str, turn: str, spec: TransformerSpec, guidance: float
) -> None:
    method = make(method_id, spec, guidance)
    (loss_a, a), (loss_b, b) = (loss_and_gradients(name, method, turn) for name in BACKENDS)
    allowed = tolerance(method.turns[turn])
    assert abs(loss_a - loss_b) <= allowed * abs(loss_a)
    assert set(a) == set(b) == set(method.turns[turn].trains)
    for network in a:
        whole = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in a[network].values()))
        assert whole > 1e-3, "a vanishing gradient would make the comparison empty"
        for key, gradient in a[network].items():
            scale = max(float(np.linalg.norm(gradient)), 1e-3 * whole)
            assert np.linalg.norm(gradient - b[network][key]) <= allowed * scale, (network, key)


@each_condition
@pytest.mark.parametrize(("method_id", "turn"), TURNS)
def test_finite_differences_agree_with_the_gradient(
    method_id: str, turn: str, spec: TransformerSpec, guidance: float
) -> None:
    method = make(method_id, spec, guidance)
    draws = method.draw(Noise(1), 0, 0, BATCH)
    loss = ReplayedLoss(method, turn, spec, starting_weights(method), examples(method, turn, 0), draws)
    gradient, generator = loss.gradient(), torch.Generator().manual_seed(0)
    whole = torch.stack([g.norm() for g in gradient.values()]).norm().item()
    for tensor, g in gradient.items():
        direction = torch.randn(g.shape, generator=generator, dtype=g.dtype)
        expected = (g * direction).sum().item()
        assert abs(loss.difference(tensor, direction, 1e-5) - expected) <= 1e-6 * (abs(expected) + whole), tensor


@pytest.mark.parametrize("method_id", METHODS)
def test_guidance_changes_the_updates_that_count_its_calls(method_id: str) -> None:
    """All of those, and no other; at least one where there is a teacher to guide."""
    plain, guided = (make(method_id, CAPTIONED, guidance) for guidance in (0.0, 1.5))
    changed = []
    for turn, calls in guided.turns.items():
        (loss, a), (guided_loss, b) = (loss_and_gradients("torch", method, turn) for method in (plain, guided))
        for network in a:
            gap, whole = (
                np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in by_name))
                for by_name in ([b[network][key] - g for key, g in a[network].items()], a[network].values())
            )
            if gap > 1e-3 * whole:
                changed.append(turn)
            assert calls.guided or (gap <= 1e-6 * whole and abs(loss - guided_loss) <= 1e-6 * abs(loss)), turn
    assert set(changed) == {turn for turn, calls in guided.turns.items() if calls.guided}
    assert bool(changed) == bool(teachers(guided))


@pytest.mark.parametrize(("method_id", "turn"), TURNS)
def test_an_update_makes_the_network_calls_that_its_turn_counts(method_id: str, turn: str) -> None:
    """Of each kind; guidance adds `guided` ones, and their cost to `passes`, where the run guides what it distils."""
    plain, both, teacher = {}, {"teacher": 1.5, "parent": 1.5}, {"teacher": 1.5, "parent": 0.0}
    calls, costs = [], []
    for guidance in (plain, both, teacher):
        method = make(method_id, CAPTIONED)
        method.guidance = guidance
        weights, batch, draws = starting_weights(method), examples(method, turn, 0), method.draw(Noise(1), 0, 0, BATCH)
        calls.append(network_calls(method, turn, weights, batch, draws, BATCH))
        costs.append(method.passes(turn))
    counted = make(method_id).turns[turn]
    assert calls[0] == Counter({kind: getattr(counted, kind) for kind in KINDS})
    assert calls[1].total() == calls[0].total() + counted.guided
    assert all((found["gradient"], found["jvp"]) == (counted.gradient, counted.jvp) for found in calls)
    assert [cost - costs[0] for cost in costs] == [found.total() - calls[0].total() for found in calls]


@pytest.mark.parametrize("method_id", METHODS)
def test_draws_are_addressed(method_id: str) -> None:
    method = make(method_id)
    whole = method.draw(Noise(0), 3, 0, BATCH)
    first, second = method.draw(Noise(0), 3, 0, 5), method.draw(Noise(0), 3, 5, BATCH - 5)
    assert same(whole, {name: np.concatenate([first[name], second[name]]) for name in whole})
    for array in whole.values():
        assert len(array) == BATCH
        assert array.dtype in (np.float32, np.int32, np.int64, np.bool_), "float64 would make the backends differ"
        assert np.isfinite(array).all()
    for other in (method.draw(Noise(0), 4, 0, BATCH), method.draw(Noise(1), 3, 0, BATCH)):
        for name, array in whole.items():
            assert array.ndim == 1 or not np.array_equal(array, other[name]), (
                "each step and each seed has its own noise"
            )


@pytest.mark.parametrize("method_id", METHODS)
def test_what_it_says_of_itself_is_consistent(method_id: str) -> None:
    method, networks = make(method_id), make(method_id).networks()
    pattern = next(rule.pattern for rule in MethodConfig.model_fields["id"].metadata if hasattr(rule, "pattern"))
    assert method.id == method_id
    assert re.fullmatch(pattern, method_id), "a profile could not name it"
    assert method.result in networks
    assert method.family(method.options) in FAMILIES
    trainable = {
        name for name, start in networks.items() if not isinstance(start, Average | Preconditioner | Pretrained)
    }
    assert {start.of for start in networks.values() if isinstance(start, Average)} <= trainable
    assert method.second_moments_of in {None} | {name for turn in method.turns.values() for name in turn.trains}
    for turn in method.turns.values():
        assert set(turn.trains) <= trainable
        assert turn.trains
        denoisers = [name for name in turn.trains if not isinstance(networks[name], Head)]
        assert turn.gradient >= len(denoisers), "each trained denoiser costs a forward and a backward pass"
    assert {method.turn(step) for step in range(1000)} == set(method.turns)
    read = {source for turn in method.turns.values() for source in turn.sources or method.sources}
    assert read == set(method.sources), "read by no turn, or unknown"


@pytest.mark.parametrize("method_id", METHODS)
@pytest.mark.parametrize("steps", [*STEPS, [8, 4, 1]], ids=str)
def test_its_students_are_sampled_at_the_step_counts_asked_for(method_id: str, steps: list[int]) -> None:
    method, found = METHODS[method_id], students(method_id, steps)
    if found is None:
        with pytest.raises(UserError, match=r"\A.+\Z"):  # one line
            method.students(steps)
        return
    for student in found:
        chain = [student]
        while (parent := method.parent(chain[-1], steps)) is not None:
            assert parent in found
            assert parent not in chain, "a circle of parents"
            chain.append(parent)
    assert sorted(k for counts in found.values() for k in counts) == sorted(steps)
    for k in steps:
        times = method.times(k)
        assert len(times) == k
        assert times[0] <= 1
        assert all(t > s for t, s in itertools.pairwise([*times, 0.0]))
