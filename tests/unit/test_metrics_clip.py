"""CMMD and the CLIP score against their definitions; caption files."""

import json

import numpy as np
import pytest

from harness.errors import UserError
from harness.metrics.clip import clip_score, cmmd, read_captions

NAMES = ["a.png", "b/c.png"]


def normal(n, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 6)) + shift


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1)[:, None]


def test_cmmd_is_the_biased_mmd_of_normalised_features():
    x, y = normal(1100), 3 * normal(40, shift=0.3, seed=1)  # more than one block

    def mean_kernel(a, b):
        distances = ((unit(a)[:, None] - unit(b)[None]) ** 2).sum(axis=2)
        return np.exp(-distances / (2 * 10.0**2)).mean()

    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-8)
    assert cmmd(x, y) == pytest.approx(cmmd(y, x), rel=1e-12)


def test_cmmd_of_a_set_with_itself_is_zero_and_grows_with_the_shift():
    x = normal(200)
    values = [cmmd(x, x), *(cmmd(x, normal(200, shift, seed=1)) for shift in (0.0, 0.5, 1.0))]
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert values == sorted(values)
    assert cmmd(x, 7 * x) == pytest.approx(0, abs=1e-12)


def test_clip_score_is_a_hundred_times_the_mean_cosine():
    images, texts = normal(5), normal(5, seed=1)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(images, texts, strict=True)]
    assert clip_score(images, texts) == pytest.approx(100 * np.mean(cosines))
    assert min(cosines) < 0  # counted as they are
    assert clip_score(images, 2 * images) == pytest.approx(100)


def test_sides_without_partners_are_refused():
    with pytest.raises(UserError, match="2 captions for 3 images"):
        clip_score(normal(3), normal(2))
    with pytest.raises(UserError, match="CMMD: needs images"):
        cmmd(normal(3), normal(0))


def test_captions_come_by_line_or_by_name(tmp_path):
    (tmp_path / "captions.txt").write_text("a dog\nein Käse\n", encoding="utf-8")
    assert read_captions(tmp_path / "captions.txt", NAMES) == ["a dog", "ein Käse"]
    (tmp_path / "captions.json").write_text(json.dumps({"b/c.png": "two", "a.png": "one", "more.png": "three"}))
    assert read_captions(tmp_path / "captions.json", NAMES) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.txt", b"one\n", "1 lines for 2 images; give one caption a line"),
        ("captions.txt", b"\xff\xfe\n", "not UTF-8 text"),
        ("captions.json", b'{"a.png": "one"}', "no caption for the image 'b/c.png'; add it"),
        ("captions.json", b"{", "not UTF-8 text, or not JSON"),
        ("captions.json", b'["one", "two"]', "must be a JSON object from image names to captions"),
        ("captions.json", b'{"a.png": 1, "b/c.png": "two"}', "must be a JSON object from image names to captions"),
    ],
)
def test_wrong_caption_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_captions(tmp_path / name, NAMES)
    with pytest.raises(UserError, match="captions cannot be read"):
        read_captions(tmp_path / f"missing-{name}", NAMES)
