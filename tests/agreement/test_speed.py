"""What a score costs beside the libraries', each measured in turn in one process, on one thread.

`FEWSTEP_METRICS_IMAGES=1000 pytest -s tests/agreement/test_speed.py` prints the ratios, and asks for the bars.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from cleanfid import fid as clean_fid
from torch_fidelity.metric_fid import fid_statistics_to_metric

from harness.metrics.extractors import load_extractor
from harness.metrics.reference import source_reference
from harness.metrics.scores import SEED, fid
from harness.metrics.sources import open_images
from harness.metrics.statistics import Moments
from harness.verbs import evaluate_images
from tests.pretrained import configured, random_images, write_folder

IMAGES = int(os.environ.get("FEWSTEP_METRICS_IMAGES", "0"))
NAME = "inception-v3-compat"


def timed(call: Callable[[], object]) -> np.ndarray:
    """Seconds by the clock and of the processor; other programs change the first more than the second."""
    start = time.perf_counter(), time.process_time()
    call()
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]])


def report(what: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Print wall and processor seconds and their ratios; returns the ratio of processor seconds."""
    numbers = ", ".join(
        f"{name} {a:.2f} s beside {b:.2f} s, {a / b:.3f}x"
        for name, a, b in zip(("clock", "cpu"), ours, theirs, strict=True)
    )
    print(f"\n{what}: {numbers}", flush=True)
    return float(ours[1] / theirs[1])


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning", "ignore:Matrix is ill-conditioned")
def test_the_frechet_distance_is_faster_than_clean_fids():
    d = 2048 if IMAGES else 512
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((d, d)) * np.exp(rng.normal(-2, 1, d)) / d**0.5
    sides = [Moments(d).update(np.maximum(rng.standard_normal((2 * d, d)) @ mixing + shift, 0)) for shift in (0, 0.02)]
    (m1, c1), (m2, c2) = ((side.mean, side.covariance) for side in sides)
    first, second = {"mu": m1, "sigma": c1}, {"mu": m2, "sigma": c2}
    calls = {
        "ours": lambda: fid(*sides),
        "clean-fid": lambda: clean_fid.frechet_distance(m1, c1, m2, c2),
        "torch-fidelity": lambda: fid_statistics_to_metric(first, second, False),
    }
    rounds = [{name: timed(call) for name, call in calls.items()} for _ in range(3)]
    seconds = {name: np.min([found[name] for found in rounds], axis=0) for name in calls}
    what = f"Frechet distance of {d} dimensions beside"
    report(f"{what} torch-fidelity's", seconds["ours"], seconds["torch-fidelity"])
    assert report(f"{what} clean-fid's", seconds["ours"], seconds["clean-fid"]) < 1


@pytest.mark.skipif(not IMAGES, reason="takes minutes; FEWSTEP_METRICS_IMAGES=1000 runs it")
def test_evaluating_takes_as_long_as_torch_fidelity_and_a_tenth_of_it_from_cached_features(
    inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Both read PNG files of 64x64 pixels and have the features of the real images at hand."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = configured(NAME, inception_file)
    real = write_folder(tmp_path / "real", random_images(min(500, IMAGES), 64, 64))
    samples = write_folder(tmp_path / "samples", random_images(IMAGES, 64, 64, seed=1))
    options = {"input2": str(real), "input2_cache_name": "real", "cache_root": str(tmp_path / "fidelity"), "fid": True}
    options |= {"feature_extractor": NAME, "feature_extractor_weights_path": str(inception_file), "batch_size": 32}
    options |= {"cuda": False, "save_cpu_ram": True, "verbose": False}
    few = write_folder(tmp_path / "few", random_images(2, 64, 64))
    torch_fidelity.calculate_metrics(input1=str(few), **options)  # fills torch-fidelity's cache
    source_reference(open_images(real), load_extractor(config)).save(tmp_path / "real.npz")
    options |= {"isc": True, "kid": True, "prc": True, "kid_subset_size": min(500, IMAGES), "rng_seed": SEED}

    def theirs() -> None:
        state = torch.get_rng_state()
        torch_fidelity.calculate_metrics(input1=str(samples), **options)
        torch.set_rng_state(state)

    def ours() -> None:
        evaluate_images.run(samples, tmp_path / "real.npz", config.model_dump(), None, None, as_json=True)

    seconds = {name: timed(call) for name, call in (("theirs", theirs), ("cold", ours), ("cached", ours))}
    capsys.readouterr()
    with capsys.disabled():
        cold = report(f"{IMAGES} images beside torch-fidelity", seconds["cold"], seconds["theirs"])
        cached = report("the same from cached features", seconds["cached"], seconds["theirs"])
    if IMAGES >= 1000:
        assert cold <= 1.05
        assert cached <= 0.1
