"""The extractor of the digits: a small classifier, committed with its hash, and its deterministic training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.datasets import ImageSet
from harness.errors import UserError
from harness.metrics.committed import read_weights, write_weights
from harness.metrics.extractors import Extractor
from harness.metrics.images import from_uint8, to_uint8

WEIGHTS = Path(__file__).parent / "weights" / "digits-cnn.safetensors"
WEIGHTS_SHA256 = "4506d690378a0f4675c13dd38a9952d62ff250962536e63a318a3583e522580e"
REQUIRED_ACCURACY = 0.97  # on held-out images

IMAGE_SHAPE = (1, 8, 8)
DIMENSION = 64
SEED = 0
EPOCHS = 40
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
LABEL_SMOOTHING = 0.1


class DigitsCNN(nn.Module):
    """Three convolutions and two linear layers: images (n, 1, 8, 8) in [-1, 1] -> features (n, 64), logits (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 2 * 2, DIMENSION)
        self.head = nn.Linear(DIMENSION, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the penultimate features and the logits."""
        x = F.silu(self.conv1(x))
        x = F.avg_pool2d(F.silu(self.conv2(x)), 2)
        x = F.avg_pool2d(F.silu(self.conv3(x)), 2)
        features = F.silu(self.hidden(x.flatten(1)))
        return features, self.head(features)


def load() -> Extractor:
    """Load the committed extractor. Raises UserError where the weights file is absent or is not the pinned one."""
    return _extractor(*_read(WEIGHTS, WEIGHTS_SHA256)[:2])


def train_extractor(train: ImageSet, heldout: ImageSet, out_path: Path | str) -> dict[str, Any]:
    """Train the classifier on `train`, check it on `heldout` and write its weights to `out_path`.

    The same machine and library versions give the same bytes; elsewhere rounding may differ, so a retrained file must
    reach the same accuracy, not the same hash. Returns what the file's metadata holds: accuracy_heldout and the two
    digests. Raises UserError, and writes nothing, below REQUIRED_ACCURACY.
    """
    network = fit(train)
    accuracy = _accuracy(_extractor(network, "unsaved"), heldout)
    _require_accuracy(out_path, accuracy)
    report = {"accuracy_heldout": accuracy, "train_digest": train.digest, "heldout_digest": heldout.digest}
    write_weights(out_path, network.state_dict(), report)
    return report


def validate(path: Path | str, heldout: ImageSet) -> dict[str, Any]:
    """Measure a weights file on `heldout`; returns its metadata with the accuracy measured now, and its sha256.

    Raises UserError where the file is absent or damaged, was trained with another split (it may then have seen the
    held-out images), or is below REQUIRED_ACCURACY.
    """
    network, sha256, report = _read(Path(path))
    if report.get("heldout_digest") != heldout.digest:
        raise UserError(f"{path}: was trained with another split of the data; train the extractor anew")
    accuracy = _accuracy(_extractor(network, sha256), heldout)
    _require_accuracy(path, accuracy)
    return report | {"accuracy_heldout": accuracy, "sha256": sha256}


def fit(train: ImageSet) -> DigitsCNN:
    """Train a classifier by AdamW on images shifted by up to one pixel: one thread, no global random state."""
    generator = torch.Generator().manual_seed(SEED)
    network = _empty_network()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
    images = F.pad(torch.from_numpy(from_uint8(to_uint8(train.images))).float(), (1, 1, 1, 1), value=-1.0)
    labels = torch.from_numpy(train.labels)
    steps = EPOCHS * -(-len(train) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(train), generator=generator).split(BATCH):
                top, left = torch.randint(0, 3, (2,), generator=generator).tolist()
                _, logits = network(images[rows, :, top : top + 8, left : left + 8])
                loss = F.cross_entropy(logits, labels[rows], label_smoothing=LABEL_SMOOTHING)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    return network


def _extractor(network: DigitsCNN, weights_hash: str) -> Extractor:
    network.eval()

    @torch.inference_mode()
    def forward(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, logits = network(torch.from_numpy(from_uint8(images)).float())
        return features.numpy(), logits.numpy()

    return Extractor("digits-cnn", weights_hash, "none", DIMENSION, IMAGE_SHAPE, forward, cheap=True)


def _accuracy(extractor: Extractor, heldout: ImageSet) -> float:
    _, logits = extractor.forward(to_uint8(heldout.images))
    assert logits is not None
    return float((logits.argmax(axis=1) == heldout.labels).mean())


def _require_accuracy(path: Path | str, accuracy: float) -> None:
    if accuracy < REQUIRED_ACCURACY:
        raise UserError(f"{path}: held-out accuracy {accuracy:.4f} is below the required {REQUIRED_ACCURACY}")


def _read(path: Path, sha256: str | None = None) -> tuple[DigitsCNN, str, dict[str, Any]]:
    network = _empty_network()
    return network, *read_weights(path, network, sha256)


def _empty_network() -> DigitsCNN:
    """A network with undefined weights; the default initialisation would draw from torch's global generator."""
    with torch.device("meta"):
        network = DigitsCNN()
    return network.to_empty(device="cpu")
