"""Streams of images: equal to extraction at once, read ahead by one batch, in bounded memory."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from harness.datasets import load_dataset
from harness.errors import UserError
from harness.metrics.extraction import gather, in_batches, stream, stream_moments
from harness.metrics.extractors import Extractor, load_extractor


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return load_dataset("digits", "heldout").pixels


def test_streams_equal_extraction_at_once(images):
    extractor = load_extractor("digits-cnn")
    whole = extractor.extract(images, 60)
    found = gather((images[start : start + 60] for start in range(0, len(images), 60)), len(images), extractor)
    np.testing.assert_array_equal(found.features, whole.features)
    np.testing.assert_array_equal(found.logits, whole.logits)
    moments = stream_moments(in_batches(images, extractor), extractor)
    assert moments.count == len(images)
    np.testing.assert_allclose(moments.mean, whole.features.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.covariance, np.cov(whole.features, rowvar=False), atol=1e-5)


def test_a_batch_is_read_while_the_one_before_it_is_extracted(images):
    second_is_being_read, first_was_extracted = threading.Event(), threading.Event()

    def batches():
        yield images[:10]
        second_is_being_read.set()
        assert first_was_extracted.wait(timeout=60)
        yield images[10:20]

    def forward(batch):
        assert second_is_being_read.wait(timeout=60), "nothing is read during an extraction"
        first_was_extracted.set()
        return np.zeros((len(batch), 2)), np.zeros((len(batch), 2))

    extractor = Extractor("slow", "0" * 64, "none", 2, (1, 8, 8), forward)
    assert sum(len(part.features) for part in stream(batches(), extractor)) == 20


def test_no_more_than_one_batch_is_read_ahead(images):
    read, taken = [], []

    def batches():
        for start in range(0, 100, 10):
            read.append(start)
            yield images[start : start + 10]

    for _ in stream(batches(), load_extractor("digits-cnn")):
        taken.append(1)
        assert len(read) <= len(taken) + 1


def test_an_error_of_the_reader_reaches_the_caller(images):
    def batches():
        yield images[:10]
        raise UserError("img7.png: damaged")

    with pytest.raises(UserError, match=r"img7\.png: damaged"):
        gather(batches(), 20, load_extractor("digits-cnn"))


MEASURE = """
import json, sys
import numpy as np
from harness.metrics.extraction import gather, stream_moments
from harness.metrics.extractors import Extractor
from harness.metrics.scores import class_distance, fid, inception_score, kid, precision_recall
from harness.metrics.statistics import Moments

D, BATCH = 256, 100
WEIGHTS = np.random.default_rng(0).standard_normal((64, D)).astype(np.float32) / 2000

def forward(images):
    features = np.maximum(images.reshape(len(images), -1).astype(np.float32) @ WEIGHTS, 0)
    return features, features[:, :10]

def batches(n):
    for index in range(n // BATCH):
        yield np.random.default_rng(index).integers(0, 256, (BATCH, 1, 8, 8), dtype=np.uint8)

extractor = Extractor("cheap", "0" * 64, "none", D, (1, 8, 8), forward)

def statistics(n):
    return fid(stream_moments(batches(n), extractor), stream_moments(batches(500), extractor))

def features(n):
    kept = gather(batches(n), n, extractor)
    other = gather(batches(1000), 1000, extractor)
    moments = [Moments(D).update(side.features) for side in (kept, other)]
    labels = np.arange(n) // 2000
    return (fid(*moments), kid(kept.features, other.features), inception_score(kept.logits),
            precision_recall(kept.features, other.features), class_distance(kept.features, labels))

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

score = {"statistics": statistics, "features": features}[sys.argv[1]]
score(int(sys.argv[2]))
peaks = [peak()]
score(int(sys.argv[3]))
print(json.dumps([*peaks, peak()]))
"""


def growth(mode: str, few: int, many: int) -> int:
    """Bytes by which the peak memory of one process grows from scoring `few` images to scoring `many`."""
    one_arena = {"MALLOC_ARENA_MAX": "1"}  # the allocator's pools of several threads are no use of ours
    command = [sys.executable, "-c", MEASURE, mode, str(few), str(many)]
    result = subprocess.run(command, env=os.environ | one_arena, capture_output=True, text=True, check=True)
    before, after = json.loads(result.stdout)
    return after - before


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from Linux's /proc")
def test_moments_alone_take_no_more_memory_for_ten_times_the_images():
    # features of 45,000 more images: 46 MB in float32; a system of huge pages counts memory by 2 MB
    assert growth("statistics", 5_000, 50_000) < 12e6


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from Linux's /proc")
def test_all_scores_take_the_features_and_a_block_and_no_more():
    kept = 45_000 * (256 + 10) * 4
    assert 0.5 * kept < growth("features", 5_000, 50_000) < kept + 16e6
