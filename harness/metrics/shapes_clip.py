"""The CLIP of the shapes: a small open_clip model over the words of their captions, committed with its hash.

Its two towers give the CLIP score, the text tower what a generator is conditioned on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from harness.datasets import ImageSet
from harness.datasets.shapes import HELD_OUT
from harness.datasets.shapes_captions import VOCABULARY
from harness.errors import UserError
from harness.metrics.clip import ClipExtractor
from harness.metrics.committed import read_weights, reproducible, write_weights
from harness.metrics.images import from_uint8, require_uint8
from harness.validation import suggest

WEIGHTS = Path(__file__).parent / "weights" / "shapes-clip.safetensors"
WEIGHTS_SHA256 = "20bb30e37a416dc95b9c8cbe928484eb2fc14502295a06978ccb1b6bd2ac6f33"
REQUIRED_RETRIEVAL = 0.90  # of the right caption among CANDIDATES, for images of scenes never trained on
CANDIDATES = 32

IMAGE_SHAPE = (3, 16, 16)
CONTEXT = 20  # tokens: 19 words and the end; the project's own captions have at most 16 words
DIMENSION = 64
PADDING, END = 0, len(VOCABULARY) + 1  # open_clip pools a text at its largest token, so that the end must be it
CONFIG: dict[str, Any] = {
    "embed_dim": DIMENSION,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 64, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": END + 1, "width": 64, "heads": 4, "layers": 2},
}
SEED = 0
STEPS = 2500
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
BETAS, EPS = (0.9, 0.98), 1e-6  # Radford et al. 2021, as is the largest scale of the logits
LARGEST_LOGIT_SCALE = float(np.log(100))


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """What the text tower makes of n captions, float32.

    tokens: (n, 20, 64), after the last norm; mask: bool (n, 20), false on padding; pooled: (n, 64), not normalised.
    """

    tokens: np.ndarray
    mask: np.ndarray
    pooled: np.ndarray


class ShapesCLIP:
    """The two towers, fixed, in NumPy. weights_hash: SHA-256 (hex) of the weights file."""

    def __init__(self, model: open_clip.CLIP, weights_hash: str) -> None:
        self.model = model.eval()
        self.weights_hash = weights_hash

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """Unit vectors (n, 64) of uint8 images (n, 3, 16, 16). Raises UserError for images of another kind."""
        require_uint8("images for the CLIP of the shapes", images, IMAGE_SHAPE)
        return self._batched(lambda x: (self.model.encode_image(x, normalize=True),), _to_torch(images))[0]

    def encode_text(self, captions: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, 64) of captions. Raises UserError as `tokenize` does."""
        return self._batched(lambda x: (self.model.encode_text(x, normalize=True),), tokenize(captions))[0]

    def text_features(self, captions: Sequence[str]) -> TextFeatures:
        """What a generator is conditioned on; "" is the empty caption, of one token. Raises UserError as `tokenize`."""
        tokens = tokenize(captions)

        def encode(x: Tensor) -> tuple[Tensor, Tensor]:
            seen: list[Tensor] = []
            hook = self.model.ln_final.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
            try:
                pooled = self.model.encode_text(x)
            finally:
                hook.remove()
            return seen[0], pooled

        states, pooled = self._batched(encode, tokens)
        return TextFeatures(states, (tokens != PADDING).numpy(), pooled)

    @torch.inference_mode()
    def _batched(self, encode: Callable[[Tensor], tuple[Tensor, ...]], inputs: Tensor) -> list[np.ndarray]:
        return [torch.cat(parts).numpy() for parts in zip(*map(encode, inputs.split(500)), strict=True)]


def tokenize(captions: Sequence[str]) -> Tensor:
    """The numbers of the captions' words, then the end, then padding: (n, 20).

    Capitals, commas and full stops count for nothing. Raises UserError for a word that is not in the vocabulary, and
    for more than 19 words.
    """
    number = {word: i for i, word in enumerate(VOCABULARY, start=PADDING + 1)}
    tokens = torch.full((len(captions), CONTEXT), PADDING)
    for row, caption in enumerate(captions):
        words = caption.lower().replace(",", " ").replace(".", " ").split()
        for word in words:
            if word not in number:
                raise UserError(f"{caption!r}: unknown word {word!r}; {suggest(word, VOCABULARY)}")
        if len(words) >= CONTEXT:
            raise UserError(f"{caption!r}: has {len(words)} words; {CONTEXT - 1} are the most")
        tokens[row, : len(words) + 1] = torch.tensor([number[word] for word in words] + [END])
    return tokens


def load() -> ClipExtractor:
    """The committed model as an extractor: image embeddings of unit length, no logits; and captions alike."""
    model = load_clip()

    def forward(images: np.ndarray) -> tuple[np.ndarray, None]:
        return model.encode_image(images), None

    return ClipExtractor(
        "shapes-clip", model.weights_hash, "none", DIMENSION, IMAGE_SHAPE, forward, cheap=True,
        encode_text=model.encode_text,
    )  # fmt: skip


def load_clip() -> ShapesCLIP:
    """Load the committed model. Raises UserError where the weights file is absent or is not the pinned one."""
    return _read(WEIGHTS, WEIGHTS_SHA256)[0]


def train_extractor(train: ImageSet, heldout: ImageSet, out_path: Path | str) -> dict[str, Any]:
    """Train the model on `train`, check it on `heldout`, and write its weights (float16) to `out_path`.

    The same machine and library versions give the same bytes. Returns what the file's metadata holds:
    retrieval_heldout and the two digests. Raises UserError, and writes nothing, where `train` holds scenes that are
    held out, and below REQUIRED_RETRIEVAL.
    """
    if HELD_OUT[train.labels].any():
        raise UserError(f"data set '{train.name}/{train.split}': holds scenes that are held out; pass the split train")
    model = fit(train).half().float()
    retrieval = _required_retrieval(ShapesCLIP(model, "unsaved"), heldout, out_path)
    report = {"retrieval_heldout": retrieval, "train_digest": train.digest, "heldout_digest": heldout.digest}
    write_weights(out_path, model.half().state_dict(), report)
    return report


def validate(path: Path | str, heldout: ImageSet) -> dict[str, Any]:
    """Measure a weights file on `heldout`; returns its metadata with the retrieval measured now, and its sha256.

    Raises UserError where the file is absent or damaged, was checked on other images, or is below REQUIRED_RETRIEVAL.
    """
    clip, report = _read(Path(path))
    if report.get("heldout_digest") != heldout.digest:
        raise UserError(f"{path}: was trained with another split of the data; train it anew")
    return report | {"retrieval_heldout": _required_retrieval(clip, heldout, path), "sha256": clip.weights_hash}


def fit(train: ImageSet) -> open_clip.CLIP:
    """Train a model by open_clip's loss, AdamW and one cycle of the learning rate."""
    assert train.captions is not None
    images, tokens = _to_torch(train.pixels), tokenize(train.captions.tolist())
    with reproducible(SEED):
        model = open_clip.CLIP(**CONFIG)
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, LEARNING_RATE, BETAS, EPS)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, LEARNING_RATE, STEPS, pct_start=0.05, cycle_momentum=False
        )
        contrast = open_clip.ClipLoss()
        order = torch.cat([torch.randperm(len(train)) for _ in range(-(-STEPS * BATCH // len(train)))])
        for rows in order[: STEPS * BATCH].split(BATCH):
            # each scene once in a batch: two captions of one scene would count as wrong for each other's images
            rows = rows[np.unique(train.labels[rows], return_index=True)[1]]
            loss = contrast(*model(images[rows], tokens[rows]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, LARGEST_LOGIT_SCALE)
    return model


def retrieval_accuracy(clip: ShapesCLIP, images: ImageSet) -> float:
    """The share of images whose own caption is nearest, among those of 32 images of different scenes.

    The images are taken in their order, each into the first group that lacks its scene; groups that stay incomplete
    are left out. Raises UserError where none is complete.
    """
    assert images.captions is not None
    groups = np.array(_groups(images.labels), dtype=np.int64).reshape(-1, CANDIDATES)
    if not len(groups):
        raise UserError(f"data set '{images.name}/{images.split}': has no {CANDIDATES} different scenes")
    x, y = clip.encode_image(images.pixels)[groups], clip.encode_text(images.captions.tolist())[groups]
    nearest = (x @ y.transpose(0, 2, 1)).argmax(axis=2)
    return float((nearest == np.arange(CANDIDATES)).mean())


def _groups(scenes: np.ndarray) -> list[list[int]]:
    complete: list[list[int]] = []
    growing: list[dict[int, int]] = []  # scene -> row
    for row, scene in enumerate(scenes.tolist()):
        group = next((group for group in growing if scene not in group), None)
        if group is None:
            growing.append(group := {})
        group[scene] = row
        if len(group) == CANDIDATES:
            complete.append(list(group.values()))
            growing.remove(group)
    return complete


def _required_retrieval(clip: ShapesCLIP, heldout: ImageSet, path: Path | str) -> float:
    accuracy = retrieval_accuracy(clip, heldout)
    if accuracy < REQUIRED_RETRIEVAL:
        raise UserError(f"{path}: held-out retrieval {accuracy:.4f} is below the required {REQUIRED_RETRIEVAL}")
    return accuracy


def _read(path: Path, sha256: str | None = None) -> tuple[ShapesCLIP, dict[str, Any]]:
    with torch.random.fork_rng(devices=[]):  # open_clip draws initial weights from the global generator
        model = open_clip.CLIP(**CONFIG)
    found, report = read_weights(path, model, sha256)
    return ShapesCLIP(model, found), report


def _to_torch(images: np.ndarray) -> Tensor:
    return torch.from_numpy(from_uint8(images)).float()
