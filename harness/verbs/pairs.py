"""`fewstep pairs`: noise, and the image that the teacher's deterministic sampler makes of it (Yin et al. 2023)."""

from functools import partial

import numpy as np
from tqdm import tqdm

from harness.addresses import TEACHER, RunAddress
from harness.backends import get_backend
from harness.checkpoint import load_checkpoint, require_config, save_checkpoint
from harness.datasets import ImageSet
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from harness.prompts import Captions, training_conditions
from harness.samplers import draw_images, equal_times, sampling_step
from harness.workspace import Workspace

PURPOSE = "pairs"
"""Apart from the noise of evaluated samples: a student is not to be scored on noise that it was trained on."""


def run(workspace: Workspace, backend: str, seed: int, guidance: float = 0.0) -> None:
    """Write pairs.safetensors beside the teacher: noise and images (n, channels, size, size), not clipped.

    With them labels (n,), or the `row` (n,) of the training images whose captions they are made for. Raises UserError
    where the profile has no section `pairs`, or the teacher is missing or of another configuration.
    """
    teacher = RunAddress(backend, TEACHER, "default", TEACHER, seed)
    config, path = workspace.require_pairs(), workspace.checkpoint(teacher)
    weights, manifest = load_checkpoint(path)
    require_config(path, manifest, workspace.run_config(teacher))
    spec, engine = TransformerSpec(**manifest["network"]), get_backend(backend)
    shape = (spec.channels, spec.size, spec.size)
    step = partial(sampling_step, workspace.clock, "ddim", 0.0)
    data = ImageSet.load(workspace.data("train"))
    captioned = workspace.profile.text is not None
    conditions = training_conditions(workspace, data) if captioned else np.arange(spec.num_classes)
    if isinstance(conditions, Captions):
        conditions.require(manifest.get("text_encoder"), path)
    rows = np.arange(config.count) % len(conditions)
    batches = draw_images(
        engine.denoiser_step(spec, weights, step, workspace.clock, guidance),
        engine.to_numpy,
        equal_times(config.steps),
        shape,
        lambda start, count: conditions[rows[start : start + count]],
        config.count,
        workspace.profile.evaluation.batch,
        seed,
        stochastic=False,
        purpose=PURPOSE,
    )
    images = []
    with tqdm(total=config.count, desc=f"{backend} pairs", unit="pair", mininterval=1) as bar:
        for batch in batches:
            images.append(batch)
            bar.update(len(batch))
    pairs = {
        "noise": Noise(seed).normal(f"{PURPOSE}/start", 0, 0, config.count, shape),
        "images": np.concatenate(images),
        "row" if captioned else "labels": rows,
    }
    about = {"config": workspace.pairs_config(teacher, guidance), "teacher": manifest["digest"]}
    save_checkpoint(workspace.pairs(teacher, guidance), pairs, about)
    print(f"{workspace.pairs(teacher, guidance)}: {config.count} pairs")
