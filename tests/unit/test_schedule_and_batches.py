"""What a run meets at each step: its learning rate, and batches from a stream whose every position has its address."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.backends.base import Update
from harness.conditions import Text
from harness.diffusion import CosineClock
from harness.method import Batch, Turn
from harness.noise import Noise
from harness.prompts import Captions
from harness.text_encoders.table import TextTable
from harness.training import BatchStream, Schedule, grouped
from tests.unit.training_runs import DATA, TINY, make_run


def test_the_learning_rate_rises_and_falls_linearly() -> None:
    schedule = Schedule(1000, batch=4, learning_rate=3e-4, warmup_updates=100, checkpoint_every=4, log_every=5)
    rates = [schedule.learning_rate_at(step) for step in range(1000)]
    expected = 3e-4 * np.concatenate([np.arange(1, 101) / 100, np.arange(900, 0, -1) / 900])
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    without = replace(schedule, warmup_updates=0)
    np.testing.assert_allclose([without.learning_rate_at(s) for s in (0, 500, 999)], [3e-4, 1.5e-4, 3e-7])
    assert replace(schedule, updates=100).learning_rate_at(99) == pytest.approx(3e-4), "warm-up to the last update"


def stream(size: int, seed: int = 0) -> BatchStream:
    """Examples that say who they are: image i is full of i, and has the label i."""
    numbers = np.arange(size)
    images = np.broadcast_to(numbers[:, None, None, None], (size, 1, 2, 2))
    return BatchStream("data", {"images": images, "condition": numbers}, Noise(seed))


def test_every_example_passes_once_in_each_epoch() -> None:
    epochs = stream(10).take(0, 50)["condition"].reshape(5, 10)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (5, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 5, "each epoch has its own order"
    assert not np.array_equal(epochs[0], stream(10, seed=1).take(0, 10)["condition"]), "each seed has its own order"


@pytest.mark.parametrize("batch", [1, 3, 7, 10, 24])
def test_a_position_of_the_stream_does_not_depend_on_how_it_is_reached(batch: int) -> None:
    whole = stream(10).take(0, 60)["condition"]
    parts = stream(10)
    starts = range(0, 48, batch)
    for start in [*starts, *reversed(starts)]:
        part = parts.take(start, batch)
        np.testing.assert_array_equal(part["condition"], whole[start : start + batch])
        np.testing.assert_array_equal(part["images"][:, 0, 1, 1], part["condition"])


def test_captions_come_with_their_images_and_keep_them_when_samples_have_several() -> None:
    """Image i shows the caption of number i // 2: one token that is full of that number, and as many words."""
    numbers = np.arange(5)
    tokens = np.broadcast_to(numbers[:, None, None].astype(np.float16), (5, 4, 3))
    table = TextTable(tokens, np.arange(4) < numbers[:, None], np.arange(10) // 2, {})
    images = np.broadcast_to(np.arange(10)[:, None, None, None], (10, 1, 2, 2))
    taken = BatchStream("data", {"images": images, "condition": Captions(table, np.arange(10))}, Noise(0)).take(3, 12)
    captions, shown = taken["condition"], taken["images"][:, 0, 0, 0] // 2
    assert isinstance(captions, Text)
    assert (captions.tokens.dtype, captions.mask.dtype) == (np.float32, bool)
    np.testing.assert_array_equal(captions.tokens[:, 0, 0], shown)
    np.testing.assert_array_equal(captions.mask.sum(axis=1), shown)
    pairs = grouped(captions, 6, 2)
    assert (pairs.tokens.shape, pairs.mask.shape) == ((6, 2, 4, 3), (6, 2, 4))
    np.testing.assert_array_equal(pairs.tokens[:, :, 0, 0], grouped(shown, 6, 2))
    assert grouped(captions, 12, 1) is captions


def test_two_examples_for_each_sample_come_with_an_axis_of_their_own(tmp_path: Path) -> None:
    run, seen = make_run(tmp_path), []
    method_class = type("Pairs", (type(run.method),), {"sources": {"data": 2}})
    run.method = method_class(2, 100, CosineClock(), run.method.options, TINY)

    def launch(turn: str, batch: Batch, *_: object) -> Callable[[], Update]:
        seen.append(batch)
        return lambda: Update(0.0, {}, {})

    run.learner.launch = launch
    for step in range(3):
        run.update(step)
    assert [batch["images"].shape for batch in seen] == [(4, 2, 1, 4, 4)] * 3
    expected = BatchStream("data", DATA, Noise(0)).take(0, 24)
    np.testing.assert_array_equal(
        np.concatenate([batch["images"] for batch in seen]).reshape(24, 1, 4, 4), expected["images"]
    )
    np.testing.assert_array_equal(
        np.concatenate([batch["condition"] for batch in seen]).reshape(24), expected["condition"]
    )


def test_a_turn_gets_the_sources_that_it_names_and_no_place_moves(tmp_path: Path) -> None:
    """Update 3 reads the fourth batch of a source, whether or not the updates before it read any."""
    run = make_run(tmp_path)
    turns = {"some": Turn(("teacher",), sources=("data",)), "all": Turn(("teacher",))}
    attributes = {"sources": {"data": 1, "pairs": 1}, "turns": turns, "turn": lambda _, step: ["some", "all"][step % 2]}
    run.method = type("Two", (type(run.method),), attributes)(2, 100, CosineClock(), run.method.options, TINY)
    run.data = {source: BatchStream(source, DATA, Noise(0)) for source in ("data", "pairs")}
    for step in range(4):
        batch, _ = run._inputs(step)
        expected = {"": run.data["data"].take(4 * step, 4)}
        if step % 2:
            expected["pairs/"] = run.data["pairs"].take(4 * step, 4)
        assert batch.keys() == {prefix + name for prefix, arrays in expected.items() for name in arrays}
        for prefix, arrays in expected.items():
            for name, array in arrays.items():
                np.testing.assert_array_equal(batch[prefix + name], array)


def test_the_next_inputs_are_prepared_while_the_device_works(tmp_path: Path) -> None:
    run, events, given = make_run(tmp_path), [], []
    inputs = run._inputs

    def prepared(step: int) -> tuple[Batch, Batch]:
        events.append(("inputs", step))
        return inputs(step)

    def launch(turn: str, batch: Batch, draws: Batch, *_: object) -> Callable[[], Update]:
        events.append(("launch", len(given)))
        given.append((batch, draws))
        return lambda: events.append(("wait", len(given) - 1)) or Update(0.0, {}, {})

    run._inputs, run.learner.launch = prepared, launch
    for step, following in ((0, 1), (1, 2), (2, None)):
        run.update(step, following)
    order = [(what, step) for step in range(3) for what in ("launch", "inputs", "wait")]
    assert events == [("inputs", 0), *((w, s + (w == "inputs")) for w, s in order if (w, s) != ("inputs", 2))]
    for step, (batch, draws) in enumerate(given):
        for found, expected in zip((batch, draws), inputs(step), strict=True):
            assert found.keys() == expected.keys()
            for key in expected:
                np.testing.assert_array_equal(found[key], expected[key])
