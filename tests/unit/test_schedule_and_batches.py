"""What a run meets at each step: its learning rate, and batches from a stream whose every position has its address."""

from dataclasses import replace

import numpy as np
import pytest

from harness.conditions import Text
from harness.noise import Noise
from harness.prompts import Captions
from harness.text_encoders.table import TextTable
from harness.training import BatchStream, Schedule, grouped


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
