"""The CLIP of the shapes: pinned weights, retrieval on scenes never trained on, and features that are open_clip's."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

open_clip = pytest.importorskip("open_clip")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from harness.datasets import ImageSet, load_dataset  # noqa: E402
from harness.datasets.shapes import SINGLE  # noqa: E402
from harness.datasets.shapes_captions import VOCABULARY  # noqa: E402
from harness.errors import UserError  # noqa: E402
from harness.metrics import shapes_clip  # noqa: E402
from harness.metrics.shapes_clip import END, ShapesCLIP, load_clip, retrieval_accuracy, tokenize  # noqa: E402


def first(images: ImageSet, n: int) -> ImageSet:
    parts = {field: getattr(images, field)[:n] for field in ("images", "labels", "captions")}
    return dataclasses.replace(images, **parts)


@pytest.fixture(scope="module")
def heldout() -> ImageSet:
    return load_dataset("shapes", "heldout")


@pytest.fixture(scope="module")
def clip() -> ShapesCLIP:
    return load_clip()


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """The committed weights in open_clip's own model, as anyone would load them."""
    model = open_clip.CLIP(**shapes_clip.CONFIG)
    model.load_state_dict(load_file(shapes_clip.WEIGHTS))
    return model.eval()


def test_the_committed_weights_find_the_captions_of_unseen_scenes(heldout: ImageSet) -> None:
    report = shapes_clip.validate(shapes_clip.WEIGHTS, heldout)
    assert report["retrieval_heldout"] >= 0.98
    assert report["sha256"] == shapes_clip.WEIGHTS_SHA256
    with safe_open(shapes_clip.WEIGHTS, framework="np") as file:
        stored = json.loads(file.metadata()["extractor"])
    assert stored["train_digest"] == load_dataset("shapes", "train").digest
    assert stored["retrieval_heldout"] == pytest.approx(report["retrieval_heldout"], abs=0.001)
    assert shapes_clip.WEIGHTS.stat().st_size < 600_000


def test_own_captions_score_high_and_others_low(clip: ShapesCLIP, heldout: ImageSet) -> None:
    few = first(heldout, 500)
    x, y = clip.encode_image(few.images), clip.encode_text(few.captions.tolist())
    own, other = (x * y).sum(axis=1), (x * np.roll(y, 1, axis=0)).sum(axis=1)
    assert own.mean() > 0.8
    assert abs(other.mean()) < 0.1


def test_one_wrong_word_lowers_the_score(clip: ShapesCLIP, heldout: ImageSet) -> None:
    few = first(heldout, 500)
    right = few.captions.tolist()
    for word, other in (("red", "green"), ("square", "triangle"), ("small", "large"), ("top", "bottom")):
        chosen = [i for i, text in enumerate(right) if word in text.split() and SINGLE[few.labels[i]]]
        x = clip.encode_image(few.images[chosen])
        y = clip.encode_text([right[i] for i in chosen])
        wrong = clip.encode_text([" ".join(other if w == word else w for w in right[i].split()) for i in chosen])
        assert ((x * y).sum(axis=1) > (x * wrong).sum(axis=1)).mean() > 0.97


def test_both_towers_are_open_clips_and_do_not_depend_on_the_batch(
    clip: ShapesCLIP, network: torch.nn.Module, heldout: ImageSet
) -> None:
    few = first(heldout, 520)  # more than one batch
    captions = few.captions.tolist()
    with torch.inference_mode():
        x, y, _ = network(torch.from_numpy(few.images / 127.5 - 1).float(), tokenize(captions))
    np.testing.assert_allclose(clip.encode_image(few.images), x.numpy(), atol=1e-5)
    np.testing.assert_allclose(clip.encode_text(captions), y.numpy(), atol=1e-5)
    np.testing.assert_allclose(clip.encode_text(captions[7:8]), y.numpy()[7:8], atol=1e-5)


def test_text_features_are_those_that_the_pooled_one_is_made_of(
    clip: ShapesCLIP, network: torch.nn.Module, heldout: ImageSet
) -> None:
    captions = ["", *heldout.captions[:40].tolist()]
    features = clip.text_features(captions)
    assert features.tokens.shape == (41, 20, 64)
    assert features.mask.sum(axis=1).tolist() == [len(caption.split()) + 1 for caption in captions]
    assert (np.diff(features.mask.astype(int), axis=1) <= 0).all()  # words first, padding last
    last = features.tokens[np.arange(41), features.mask.sum(axis=1) - 1].astype(np.float64)
    pooled = last @ network.text_projection.detach().numpy()
    np.testing.assert_allclose(features.pooled, pooled, atol=1e-4)
    unit = features.pooled / np.linalg.norm(features.pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, clip.encode_text(captions), atol=1e-5)


def test_tokens_are_words_in_order_and_the_end_is_the_largest() -> None:
    tokens = tokenize(["a red circle", "A  small blue square, on white.", ""])
    words = {number: word for number, word in enumerate(VOCABULARY, start=1)}
    assert [words.get(token, "-") for token in tokens[0].tolist()] == ["a", "red", "circle", *["-"] * 17]
    assert [words.get(token) for token in tokens[1, :6].tolist()] == ["a", "small", "blue", "square", "on", "white"]
    assert tokens.argmax(dim=1).tolist() == [3, 6, 0]
    assert tokens.max().item() == END == shapes_clip.CONFIG["text_cfg"]["vocab_size"] - 1
    with pytest.raises(UserError, match=r"'a rad circle': unknown word 'rad'; did you mean 'red'\?"):
        tokenize(["a rad circle"])
    with pytest.raises(UserError, match="has 20 words; 19 are the most"):
        tokenize(["a " * 20])


def test_images_of_another_kind_are_refused(clip: ShapesCLIP) -> None:
    with pytest.raises(UserError, match=r"CLIP of the shapes must be uint8 \(n, 3, 16, 16\)"):
        clip.encode_image(np.zeros((2, 3, 8, 8), np.uint8))


class Known:
    """In place of a CLIP: it knows the scene of every image and caption, and misreads the images `wrong`."""

    def __init__(self, images: ImageSet, wrong: list[int]) -> None:
        seen = images.labels.copy()
        seen[wrong] = -1
        scenes = [-1, *np.unique(images.labels)]
        self.images = np.eye(len(scenes))[np.searchsorted(scenes, seen)]
        self.texts = np.eye(len(scenes))[np.searchsorted(scenes, images.labels)]

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        return self.images[: len(images)]

    def encode_text(self, captions: list[str]) -> np.ndarray:
        return self.texts[: len(captions)]


def test_retrieval_is_the_share_found_among_32_different_scenes(heldout: ImageSet) -> None:
    few = first(heldout, 3200)
    groups = shapes_clip._groups(few.labels)
    assert len(groups) > 90
    assert all(len(group) == 32 == len(set(few.labels[group])) for group in groups)
    flat = [row for group in groups for row in group]
    assert len(set(flat)) == len(flat)
    assert retrieval_accuracy(Known(few, []), few) == 1
    wrong = [group[i] for group in groups[:50] for i in (5, 20)]  # nothing stands out: the first candidate is taken
    assert retrieval_accuracy(Known(few, wrong), few) == 1 - len(wrong) / len(flat)
    with pytest.raises(UserError, match="has no 32 different scenes"):
        retrieval_accuracy(Known(few, []), first(few, 31))


def test_other_files_and_sets_are_refused(tmp_path: Path, heldout: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="another split"):
        shapes_clip.validate(shapes_clip.WEIGHTS, first(heldout, 100))
    with pytest.raises(UserError, match="shapes/heldout': holds scenes that are held out; pass the split train"):
        shapes_clip.train_extractor(heldout, heldout, tmp_path / "a.safetensors")
    altered = bytearray(shapes_clip.WEIGHTS.read_bytes())
    altered[-1] ^= 1
    (tmp_path / "altered.safetensors").write_bytes(altered)
    monkeypatch.setattr(shapes_clip, "WEIGHTS", tmp_path / "altered.safetensors")
    with pytest.raises(UserError, match="is not the pinned"):
        load_clip()


def test_training_is_reproducible_and_writes_nothing_below_the_bar(
    tmp_path: Path, heldout: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, few = first(load_dataset("shapes", "train"), 300), first(heldout, 200)
    monkeypatch.setattr(shapes_clip, "STEPS", 5)
    with pytest.raises(UserError, match=r"held-out retrieval 0\.\d+ is below the required 0\.9"):
        shapes_clip.train_extractor(train, few, tmp_path / "a.safetensors")
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(shapes_clip, "REQUIRED_RETRIEVAL", 0.0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    report = shapes_clip.train_extractor(train, few, tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(1)
    shapes_clip.train_extractor(train, few, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert shapes_clip.validate(tmp_path / "a.safetensors", few).items() >= report.items()


def test_the_scenes_of_a_batch_are_different(monkeypatch: pytest.MonkeyPatch) -> None:
    train = first(load_dataset("shapes", "train"), 400)
    seen: list[int] = []

    class Contrast(open_clip.ClipLoss):
        def forward(self, x, y, scale):
            seen.append(len(x))
            return super().forward(x, y, scale)

    monkeypatch.setattr(open_clip, "ClipLoss", Contrast)
    monkeypatch.setattr(shapes_clip, "STEPS", 6)
    shapes_clip.fit(dataclasses.replace(train, labels=np.arange(400) % 40))
    assert max(seen) <= 40
    assert len(seen) == 6
