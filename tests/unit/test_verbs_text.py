"""`fewstep text`: tables of both splits, written once."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.datasets import ImageSet
from harness.errors import UserError
from harness.text_encoders import TextEncoder
from harness.text_encoders.config import TextConfig
from harness.text_encoders.table import TextTable
from harness.verbs import text

pytest.importorskip("open_clip")

TRAIN = ["a red circle", "a small blue square", "a red circle"]
HELDOUT = ["a large green triangle on white"]


def images(split: str, captions: list[str] | None) -> ImageSet:
    n = len(captions or TRAIN)
    own = None if captions is None else np.array(captions, np.dtypes.StringDType())
    return ImageSet("drawn", split, np.zeros((n, 3, 4, 4), np.uint8), np.zeros(n, np.int64), 1, own)


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    """What the verb uses of one."""
    profile = SimpleNamespace(name="mine", text=TextConfig(encoder="shapes-clip"))
    images("train", TRAIN).save(tmp_path / "train.npz")
    images("heldout", HELDOUT).save(tmp_path / "heldout.npz")
    return SimpleNamespace(
        profile=profile,
        data=lambda split: tmp_path / f"{split}.npz",
        text=lambda split: tmp_path / "text" / f"{split}.npz",
    )


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Whatever is given to the encoder."""
    seen: list[list[str]] = []
    load = text.load_encoder

    def counting(config: TextConfig) -> TextEncoder:
        encoder = load(config)
        return dataclasses.replace(encoder, encode=lambda c: (seen.append(list(c)), encoder.encode(c))[1])

    monkeypatch.setattr(text, "load_encoder", counting)
    return seen


def test_both_splits_are_written_with_a_line_each(workspace: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text.run(workspace)
    train, heldout = (TextTable.load(workspace.text(split)) for split in ("train", "heldout"))
    assert train.tokens.shape == (2, 5, 64)
    assert train.rows(np.arange(3)).mask.sum(axis=1).tolist() == [4, 5, 4]
    assert heldout.mask.sum(axis=1).tolist() == [7]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    counts = "2 different captions of 3 images, at most 5 tokens of 64 values"
    assert lines[0].startswith(f"{workspace.text('train')}: {counts}; shapes-clip 20bb30e3")


def test_what_is_there_is_kept_until_captions_or_weights_change(
    workspace: Any, encoded: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text.run(workspace)
    assert len(encoded) == 2
    written = workspace.text("train").stat().st_mtime_ns
    text.run(workspace)
    assert len(encoded) == 2
    # Not the whole stat: reading the table moves the time of its last access.
    assert workspace.text("train").stat().st_mtime_ns == written
    images("train", ["a small red circle", *TRAIN[1:]]).save(workspace.data("train"))
    text.run(workspace)
    assert [sorted(batch) for batch in encoded[2:]] == [["a red circle", "a small blue square", "a small red circle"]]
    load = text.load_encoder
    monkeypatch.setattr(text, "load_encoder", lambda c: dataclasses.replace(load(c), weights_hash="1" * 64))
    text.run(workspace)
    assert len(encoded) == 5
    assert TextTable.load(workspace.text("heldout")).identity["encoder_weights"] == "1" * 64


def test_what_is_missing_is_said_before_anything_is_encoded(workspace: Any, encoded: list[list[str]]) -> None:
    images("heldout", None).save(workspace.data("heldout"))
    with pytest.raises(
        UserError, match=r"profile 'mine': the data set 'drawn' has no captions; name one that has \(data"
    ):
        text.run(workspace)
    workspace.data("heldout").unlink()
    with pytest.raises(UserError, match=r"heldout.npz: no such file; write it first, with: fewstep data"):
        text.run(workspace)
    workspace.profile.text = None
    with pytest.raises(UserError, match=r"profile 'mine': the section text \(encoder, weights\) is missing; add it"):
        text.run(workspace)
    assert encoded == []


def test_a_damaged_table_is_not_taken(workspace: Any) -> None:
    text.run(workspace)
    whole = workspace.text("train").read_bytes()
    workspace.text("train").write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"text/train.npz: truncated, altered, or not an npz file; delete it"):
        text.run(workspace)
