"""`fewstep sample`: draw images from a trained network, with every sampler and step count of its run."""

import json
import time
from collections.abc import Iterable
from functools import partial

import numpy as np
from tqdm import tqdm

from harness.addresses import TEACHER, RunAddress, Setting
from harness.backends import get_backend
from harness.backends.base import Weights
from harness.checkpoint import load_checkpoint, require_config
from harness.datasets.archive import save_arrays
from harness.files import write_atomic
from harness.metrics.images import to_uint8
from harness.networks.transformer import TransformerSpec
from harness.prompts import Captions, Prompts, prompts
from harness.provenance import run_record
from harness.registry import get_method
from harness.samplers import draw_images, sampling_step
from harness.workspace import Workspace


def run(
    workspace: Workspace, backend: str, method: str, variant: str, student: str, seed: int, guidance: float = 0.0
) -> None:
    """Write samples-<setting>.npz (images uint8 and labels) for each setting, and sampling.json with throughputs."""
    address = RunAddress(backend, method, variant, student, seed, guidance)
    folder, settings = workspace.run(address), workspace.settings(address)
    checkpoint = folder / f"{get_method(method).result}.safetensors"
    weights, manifest = load_checkpoint(checkpoint)
    require_config(checkpoint, manifest, workspace.run_config(address))
    spec, n_samples, throughput = TransformerSpec(**manifest["network"]), workspace.profile.evaluation.n_samples, {}
    given = prompts(workspace, spec.num_classes)
    if isinstance(given.conditions, Captions):
        given.conditions.require(manifest.get("text_encoder"), checkpoint)
    labels = given.labels[given.rows(0, n_samples)]
    for setting in settings:
        images, rate = draw(workspace, address, setting, spec, weights, given, n_samples)
        throughput[setting.name] = round(rate, 1)
        save_arrays(folder / f"samples-{setting.name}.npz", images=images, labels=labels)
    record = {
        "checkpoint": manifest["digest"],
        "prompts": given.images,
        "images_per_second": throughput,
        "provenance": run_record(),
    }
    write_atomic(folder / "sampling.json", json.dumps(record, indent=1) + "\n")


def draw(
    workspace: Workspace,
    address: RunAddress,
    setting: Setting,
    spec: TransformerSpec,
    weights: Weights,
    given: Prompts,
    n_samples: int,
    purpose: str = "sample",
) -> tuple[np.ndarray, float]:
    """Images (n, c, h, w) uint8 of a run's network `weights` in one setting, and images per second.

    The noise is that of the run's seed and of `purpose`.
    """
    engine, method = get_backend(address.backend), get_method(address.method)
    upper_bound = workspace.profile.teacher.sampling_noise if address.method == TEACHER else 0.0
    step = partial(sampling_step, workspace.clock, setting.sampler, upper_bound)
    batches = draw_images(
        engine.denoiser_step(spec, weights, step, workspace.clock, setting.guidance),
        engine.to_numpy,
        method.times(setting.steps),
        (spec.channels, spec.size, spec.size),
        given.condition,
        n_samples,
        workspace.profile.evaluation.batch,
        address.seed,
        stochastic=setting.sampler != "ddim",
        purpose=purpose,
    )
    return _collect(batches, n_samples, f"{address.backend} {address.method} {setting.name}")


def _collect(batches: Iterable[np.ndarray], total: int, title: str) -> tuple[np.ndarray, float]:
    """All images, quantised, and images per second, under a progress bar.

    The first of several batches is not timed, because compilation happens in it.
    """
    images, untimed, began = [], 0, time.monotonic()
    with tqdm(total=total, desc=title, unit="image", mininterval=1) as bar:
        for batch in batches:
            images.append(to_uint8(batch))
            bar.update(len(batch))
            if len(images) == 1 and len(batch) < total:
                untimed, began = len(batch), time.monotonic()
    return np.concatenate(images), (total - untimed) / (time.monotonic() - began)
