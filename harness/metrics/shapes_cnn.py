"""The extractor of the shapes: a small classifier of every attribute, which also judges what generated images show.

It is trained on all scenes, those included that no generator is trained on. Trained without them it would learn that
they do not occur (a shape is never seen in some colour at some place), and would misread images that show them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.datasets import ImageSet
from harness.datasets.shapes import ATTRIBUTES, COUNTS, HELD_OUT, SCENES, SINGLE, draw
from harness.errors import UserError
from harness.metrics.committed import read_weights, reproducible, write_weights
from harness.metrics.extractors import Extractor
from harness.metrics.images import from_uint8, require_uint8

WEIGHTS = Path(__file__).parent / "weights" / "shapes-cnn.safetensors"
WEIGHTS_SHA256 = "3643177306eec63a58f9074a8ff6288603bf8a8cc42db4136cc1db389d8c1467"
REQUIRED_ACCURACY = 0.97  # of each attribute, on held-out images of one object

IMAGE_SHAPE = (3, 16, 16)
HEADS = {name: len(ATTRIBUTES[name.removesuffix("2")]) for name in SCENES.dtype.names or ()}
DIMENSION = 64
FEATURE_SCALE = 8.73  # root of the features' mean variance over real images: distances near one, and KID's kernel tame
SEED = 0
STEPS = 4000
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2


class ShapesCNN(nn.Module):
    """Three convolutions, two linear layers: images (n, 3, 16, 16) in [-1, 1] -> features (n, 64), logits (n, 34)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(12, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4 * 4, DIMENSION)
        self.heads = nn.Linear(DIMENSION, sum(HEADS.values()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the penultimate features and the logits of all attributes, side by side in the order of HEADS."""
        x = F.silu(self.conv1(F.pixel_unshuffle(x, 2)))
        x = F.silu(self.conv2(x))
        x = F.avg_pool2d(F.silu(self.conv3(x)), 2)
        features = F.silu(self.hidden(x.flatten(1)))
        return features, self.heads(features)


def load() -> Extractor:
    """Load the committed extractor; its logits are those of shape and colour together, (n, 24).

    Raises UserError where the weights file is absent or is not the pinned one.
    """
    network, weights_hash, _ = _read(WEIGHTS, WEIGHTS_SHA256)

    def forward(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, logits = _run(network, images)
        # log p(shape) + log p(colour): the Inception score wants one classification
        joint = logits["shape"].log_softmax(1)[:, :, None] + logits["colour"].log_softmax(1)[:, None, :]
        return features.numpy() / FEATURE_SCALE, joint.flatten(1).numpy()

    return Extractor("shapes-cnn", weights_hash, "none", DIMENSION, IMAGE_SHAPE, forward, cheap=True)


def attribute_accuracy(images: np.ndarray, scenes: np.ndarray) -> dict[str, float]:
    """The share of uint8 images (n, 3, 16, 16) in which the committed classifier reads what was asked for.

    scenes: (n,), numbers of scenes, all of one object or all of two. Returns the share of each attribute that these
    have, and of all of them at once (`joint`). Where one object is asked for and two are read, the position is wrong.
    Raises UserError for images or weights of another kind, and for scenes of both kinds.
    """
    return _attribute_accuracy(_read(WEIGHTS, WEIGHTS_SHA256)[0], images, scenes)


def train_extractor(train: ImageSet, heldout: ImageSet, out_path: Path | str) -> dict[str, Any]:
    """Train the classifier, check it on `heldout`, and write its weights (float16) to `out_path`.

    It sees `train` and, drawn anew, as many images of the held-out scenes as `heldout` has. The same machine and
    library versions give the same bytes. Returns what the file's metadata holds: accuracy_heldout, the joint one of
    images of one object, those of each attribute, and the two digests. Raises UserError, and writes nothing, where one
    attribute is below REQUIRED_ACCURACY.
    """
    network = fit(train, draw("judge", COUNTS["heldout"], HELD_OUT)).half().float()
    report = _measure(network, heldout, out_path) | {"train_digest": train.digest, "heldout_digest": heldout.digest}
    write_weights(out_path, network.half().state_dict(), report)
    return report


def validate(path: Path | str, heldout: ImageSet) -> dict[str, Any]:
    """Measure a weights file on `heldout`; returns its metadata with the accuracies measured now, and its sha256.

    Raises UserError where the file is absent or damaged, was checked on other images, or is below REQUIRED_ACCURACY.
    """
    network, sha256, report = _read(Path(path))
    if report.get("heldout_digest") != heldout.digest:
        raise UserError(f"{path}: was trained with another split of the data; train the extractor anew")
    return report | _measure(network, heldout, path) | {"sha256": sha256}


def fit(*sets: ImageSet) -> ShapesCNN:
    """Train a classifier on the images of all `sets` by AdamW and one cycle of the learning rate."""
    images = torch.from_numpy(from_uint8(np.concatenate([s.pixels for s in sets]))).float()
    scenes = SCENES[np.concatenate([s.labels for s in sets])]
    targets = {name: torch.from_numpy(scenes[name].copy()) for name in HEADS}
    with reproducible(SEED):
        network = ShapesCNN()
        optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, LEARNING_RATE, STEPS, pct_start=0.05, cycle_momentum=False
        )
        order = torch.cat([torch.randperm(len(images)) for _ in range(-(-STEPS * BATCH // len(images)))])
        for rows in order[: STEPS * BATCH].split(BATCH):
            logits = _by_head(network(images[rows])[1])
            # -1: there is no second object
            losses = [F.cross_entropy(logits[name], targets[name][rows], ignore_index=-1) for name in HEADS]
            loss = torch.stack(losses).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network


def _read(path: Path, sha256: str | None = None) -> tuple[ShapesCNN, str, dict[str, Any]]:
    with torch.random.fork_rng(devices=[]):  # the initial weights come from the global generator
        network = ShapesCNN()
    return network, *read_weights(path, network, sha256)


def _by_head(logits: Tensor) -> dict[str, Tensor]:
    return dict(zip(HEADS, logits.split(list(HEADS.values()), dim=1), strict=True))


@torch.inference_mode()
def _run(network: ShapesCNN, images: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
    features, logits = network(torch.from_numpy(from_uint8(images)).float())
    return features, _by_head(logits)


def _attribute_accuracy(network: ShapesCNN, images: np.ndarray, scenes: np.ndarray) -> dict[str, float]:
    require_uint8("images whose attributes are read", images, IMAGE_SHAPE)
    asked, single = SCENES[scenes], SINGLE[scenes]
    if single.any() != single.all():
        raise UserError("scenes of one object and of two are not judged together; pass them in turn")
    names = list(ATTRIBUTES) if single.all() else list(HEADS)
    right = {name: np.empty(len(images), bool) for name in names}
    for start in range(0, len(images), 500):
        rows = slice(start, start + 500)
        logits = _run(network, images[rows])[1]
        for name in names:
            right[name][rows] = logits[name].argmax(dim=1).numpy() == asked[name][rows]
    shares = {name: float(of_one.mean()) for name, of_one in right.items()}
    return shares | {"joint": float(np.all(list(right.values()), axis=0).mean())}


def _measure(network: ShapesCNN, heldout: ImageSet, path: Path | str) -> dict[str, Any]:
    """The accuracies on images of one object and of two. Raises UserError below the required one, naming `path`."""
    single = SINGLE[heldout.labels]
    one, two = (_attribute_accuracy(network, heldout.pixels[rows], heldout.labels[rows]) for rows in (single, ~single))
    for name in ATTRIBUTES:
        if one[name] < REQUIRED_ACCURACY:
            raise UserError(f"{path}: held-out accuracy {one[name]:.4f} of {name} is below {REQUIRED_ACCURACY}")
    return {"accuracy_heldout": one["joint"], "one_object": one, "two_objects": two}
