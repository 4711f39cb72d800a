"""`fewstep sample --prompt`: one image from a text-conditioned checkpoint, whichever run or machine it comes from."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.addresses import TEACHER
from harness.backends import get_backend
from harness.checkpoint import load_checkpoint
from harness.conditions import Text
from harness.config import validate_options
from harness.diffusion import make_clock
from harness.errors import UserError
from harness.files import open_atomic
from harness.metrics.images import to_uint8
from harness.networks.transformer import TransformerSpec
from harness.registry import get_method
from harness.samplers import draw_images, sampling_step
from harness.text_encoders import load_encoder
from harness.text_encoders.config import TextConfig
from harness.validation import validate
from harness.workspace import Workspace

PROFILE, METHOD = "shapes", "moment-matching/alternating"
"""Whose student of so many steps is meant where neither a run nor a checkpoint is named."""
SHORTEST_SIDE = 256
"""Pixels; smaller images are enlarged by a whole factor, so that they can be looked at."""


def find_checkpoint(given: Mapping[str, Any], steps: int) -> Path:
    """The checkpoint that options name, by themselves or by a run; of several that fit, the first that is there.

    Raises UserError, naming the first of them, where none is.
    """
    if "checkpoint" in given:
        clash = sorted(given.keys() & {"profile", "results", "method", "variant", "student"})
        if clash:
            raise UserError(f"sample: --{clash[0]} has no effect with --checkpoint; leave it out")
        return Path(given["checkpoint"])
    workspace = Workspace(given.get("profile", PROFILE), given.get("results"))
    if workspace.profile.text is None:
        raise UserError(f"profile {workspace.profile.name!r} has no captions; name one that has, say {PROFILE}")
    method = given.get("method", METHOD)
    runs = [*workspace.runs(), *workspace.ablations()]
    wanted = {"method": method, "variant": given.get("variant", "default")}
    wanted |= {"student": given["student"]} if "student" in given else {}
    wanted |= {"backend": str(given["backend"])} if "backend" in given else {}
    wanted |= {"guidance": given["guidance"]} if "guidance" in given and method != TEACHER else {}
    fitting = [run for run in runs if all(getattr(run, key) == value for key, value in wanted.items())]
    if "student" not in given and method != TEACHER:
        wanted["steps"] = steps
        fitting = [run for run in fitting if steps in workspace.steps(run)]
    if not fitting:
        named = ", ".join(f"{key} {value}" for key, value in wanted.items())
        raise UserError(f"profile {workspace.profile.name!r} has no run of {named}; name another, or a --checkpoint")
    paths = [workspace.checkpoint(run) for run in fitting]
    found = [path for path in paths if path.is_file()]
    if not found:
        target = " all_ablations" if fitting[0] in workspace.ablations() else ""
        command = f" (snakemake --cores all{target} --config profile={given.get('profile', PROFILE)})"
        if "results" in given:  # the workflow writes below the current folder
            command = ""
        raise UserError(f"{paths[0]}: no such file; train it first{command}, name another run, or a --checkpoint")
    return found[0]


def run(prompt: str, steps: int, out: Path, given: Mapping[str, Any]) -> None:
    """Write one image (PNG) of the caption `prompt`; `given` are the options of the command line by name.

    The seed is that of the noise.

    Raises UserError for a checkpoint that is not conditioned on text, or that was trained with other features.
    """
    checkpoint, backend, seed = find_checkpoint(given, steps), str(given.get("backend", "torch")), given.get("seed", 0)
    if not out.resolve().parent.is_dir():
        raise UserError(f"{out.parent}: the output folder does not exist; create it, or choose another (--out)")
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: the image is a PNG; name a .png file (--out)")
    params, manifest = load_checkpoint(checkpoint)
    try:
        spec, config = TransformerSpec(**manifest["network"]), manifest["config"]
        method_id, clock = manifest["method"], make_clock(**config["clock"])
    except (KeyError, TypeError):
        method_id = None
    if method_id is None or "second_moments_of" in manifest:
        raise UserError(f"{checkpoint}: not the result of a training run; name another (--checkpoint)")
    if not spec.text_width:
        raise UserError(f"{checkpoint}: is not conditioned on text; name one that is (--checkpoint)")
    guidance = given.get("guidance", 0.0) if method_id == TEACHER else 0.0
    family = _family(checkpoint, method_id, config, steps, given)
    folder = given.get("text_weights")
    known = {"encoder": config["text"]} if isinstance(config["text"], str) else config["text"]
    text = validate(
        TextConfig, known | ({} if folder is None else {"weights": str(folder.resolve())}), "--text-weights"
    )
    encoder = load_encoder(text)
    if encoder.weights_hash != manifest["text_encoder"]:
        raise UserError(
            f"{checkpoint}: was trained with other weights of the text encoder {text.encoder!r}; name those"
        )
    features = encoder.encode([prompt])
    length = int(features.mask.sum())
    condition = Text(features.tokens[:, :length].astype(np.float16).astype(np.float32), features.mask[:, :length])
    engine = get_backend(backend)
    step = engine.denoiser_step(spec, params, partial(sampling_step, clock, family, 0.0), clock, guidance)
    images = draw_images(
        step,
        engine.to_numpy,
        get_method(method_id).times(steps),
        (spec.channels, spec.size, spec.size),
        lambda start, count: condition,
        n_samples=1,
        batch=1,
        seed=seed,
        stochastic=family != "ddim",
    )
    _write_png(out, to_uint8(next(images))[0])
    print(f"{out}: {prompt!r}, {steps} step{'s' * (steps > 1)} of {checkpoint}")


def _family(checkpoint: Path, method_id: str, config: dict[str, Any], steps: int, given: Mapping[str, Any]) -> str:
    """The sampler family of a checkpoint. UserError for guidance that it cannot have; other step counts are noted."""
    method = get_method(method_id)
    if method_id == TEACHER:
        return method.sampler
    student = config["student"]
    if "checkpoint" in given and given.get("guidance"):
        raise UserError(f"{checkpoint}: a student has its teacher's guidance in it; leave out --guidance")
    if steps not in student["steps"]:
        trained = " or ".join(map(str, student["steps"]))
        print(f"note: this student was trained for {trained} steps, not {steps}", file=sys.stderr)
    return method.family(validate_options(method.Options, student["options"], f"{checkpoint}: options"))


def _write_png(path: Path, image: np.ndarray) -> None:
    factor = max(1, SHORTEST_SIDE // min(image.shape[1:]))
    pixels = image.repeat(factor, axis=1).repeat(factor, axis=2)
    with open_atomic(path) as file:
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, format="PNG")
