"""`fewstep pairs`: noise, and the image that the teacher's deterministic sampler makes of it (Yin et al. 2023)."""

from functools import partial

import numpy as np
from tqdm import tqdm

from harness.addresses import TEACHER, RunAddress
from harness.backends import get_backend
from harness.checkpoint import load_checkpoint, require_config, save_checkpoint
from harness.networks.transformer import TransformerSpec
from harness.noise import Noise
from harness.samplers import draw_images, equal_times, sampling_step
from harness.workspace import Workspace

PURPOSE = "pairs"
"""Apart from the noise of evaluated samples: a student is not to be scored on noise that it was trained on."""


def run(workspace: Workspace, backend: str, seed: int) -> None:
    """Write pairs.safetensors beside the teacher: noise and images (n, channels, size, size), not clipped; labels (n,).

    Raises UserError where the profile has no section `pairs`, or the teacher is missing or of another configuration.
    """
    teacher = RunAddress(backend, TEACHER, "default", TEACHER, seed)
    config, path = workspace.require_pairs(), workspace.checkpoint(teacher)
    weights, manifest = load_checkpoint(path)
    require_config(path, manifest, workspace.run_config(teacher))
    spec, engine = TransformerSpec(**manifest["network"]), get_backend(backend)
    shape = (spec.channels, spec.size, spec.size)
    step = partial(sampling_step, workspace.clock, "ddim", 0.0, 0.0, spec.num_classes)
    batches = draw_images(
        engine.denoiser_step(spec, weights, step, workspace.clock),
        engine.to_numpy,
        equal_times(config.steps),
        shape,
        spec.num_classes,
        config.count,
        workspace.profile.evaluation.batch,
        seed,
        stochastic=False,
        purpose=PURPOSE,
    )
    images, labels = [], []
    with tqdm(total=config.count, desc=f"{backend} pairs", unit="pair", mininterval=1) as bar:
        for batch, classes in batches:
            images.append(batch)
            labels.append(classes)
            bar.update(len(batch))
    pairs = {
        "noise": Noise(seed).normal(f"{PURPOSE}/start", 0, 0, config.count, shape),
        "images": np.concatenate(images),
        "labels": np.concatenate(labels),
    }
    about = {"config": workspace.pairs_config(teacher), "teacher": manifest["digest"]}
    save_checkpoint(workspace.pairs(teacher), pairs, about)
    print(f"{workspace.pairs(teacher)}: {config.count} pairs")
