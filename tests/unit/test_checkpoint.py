"""Checkpoints: what was saved is what is loaded, and nothing else is; every damage is one clear line."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from harness.checkpoint import content_digest, differences, load_checkpoint, require_config, save_checkpoint
from harness.errors import UserError

TENSORS = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "count": np.array(7, np.int32),
    "empty": np.zeros((0, 3), np.float32),
    "half": np.ones(3, np.float16),
}
MANIFEST = {"config": {"seed": 0, "teacher": {"batch": 32, "updates": 60}}, "method": "teacher"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, TENSORS, MANIFEST)
    return path


def refused(path: Path, match: str) -> None:
    """The file is refused with one line that names it and says what to do."""
    with pytest.raises(UserError, match=match) as error:
        load_checkpoint(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert "train" in message


def test_round_trip(checkpoint: Path) -> None:
    tensors, manifest = load_checkpoint(checkpoint)
    assert tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (expected.dtype, expected.shape), name
        np.testing.assert_array_equal(tensors[name], expected)
    assert {key: manifest[key] for key in MANIFEST} == MANIFEST
    assert manifest["digest"] == content_digest(TENSORS, {**MANIFEST, "format": 1})


def test_safetensors_reads_it_alone(checkpoint: Path) -> None:
    np.testing.assert_array_equal(load(checkpoint.read_bytes())["transposed"], TENSORS["transposed"])


def test_equal_content_gives_equal_bytes(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, dict(reversed(TENSORS.items())), dict(reversed(MANIFEST.items())))
    assert other.read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"weight": TENSORS["weight"] + 1},
        {"weight": TENSORS["weight"].reshape(4, 3)},
        {"weight": TENSORS["weight"].view(np.int32)},
        {"count": np.array([7], np.int32)},
        {"another": np.zeros(1)},
    ],
    ids=["value", "shape", "type", "scalar", "name"],
)
def test_the_digest_sees_every_change(change: dict[str, np.ndarray]) -> None:
    assert content_digest(TENSORS | change, MANIFEST) != content_digest(TENSORS, MANIFEST)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -40, -1])
def test_a_truncated_file_is_refused(checkpoint: Path, kept: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    refused(checkpoint, "damaged or not a checkpoint")


def test_a_flipped_bit_anywhere_in_a_tensor_is_refused(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for position in range(header, len(content)):
        checkpoint.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        refused(checkpoint, "altered")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"weight"', b'"weighs"'),
        (b'"I32"', b'"F32"'),
        (b"[3,4]", b"[4,3]"),
        (b'\\"format\\": 1', b'\\"format\\": 2'),
        (b'"fewstep"', b'"festoon"'),
        (b'\\"batch\\": 32', b'\\"batch\\": 33'),
        (b'\\"digest\\": \\"', b'\\"digest\\": \\"x'),
        (b'\\"digest\\"', b'\\"digests\\"'),
        (b'{"__metadata__"', b"["),
    ],
)
def test_an_altered_header_is_refused(checkpoint: Path, old: bytes, new: bytes) -> None:
    content = checkpoint.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size]
    assert header.count(old) == 1
    header = header.replace(old, new)
    checkpoint.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    refused(checkpoint, "altered|damaged|not a fewstep checkpoint")


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    refused(tmp_path / "teacher.safetensors", "no such checkpoint")


@pytest.mark.parametrize(
    "content",
    [
        save(TENSORS),
        save(TENSORS, {"fewstep": "null"}),
        save(TENSORS, {"fewstep": "[1]"}),
        save(TENSORS, {"fewstep": "{"}),
        save(TENSORS, {"fewstep": json.dumps({"format": 1})}),
        b"PK\x03\x04 another format altogether",
        b"\x80\x04 a pickle",
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    refused(path, "not a fewstep checkpoint|damaged or not a checkpoint|altered")


def test_a_checkpoint_of_another_configuration_names_the_differing_keys(checkpoint: Path) -> None:
    _, manifest = load_checkpoint(checkpoint)
    require_config(checkpoint, manifest, MANIFEST["config"])
    other = {"seed": 1, "teacher": {"batch": 32, "updates": 70, "weight": "flat"}}
    expected = r"seed is 0, expected 1; teacher.updates is 60, expected 70; teacher.weight is None, expected flat"
    with pytest.raises(UserError, match=expected) as error:
        require_config(checkpoint, manifest, other)
    assert str(checkpoint) in str(error.value)


def test_differences_are_leaves_with_dotted_keys() -> None:
    assert differences({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 2]}}) == []
    assert differences({"a": {"c": [1, 2]}}, {"a": {"c": [2, 1]}}) == ["a.c is [1, 2], expected [2, 1]"]
    assert differences({"a": None}, {"a": {"b": 1}}) == ["a is None, expected {'b': 1}"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path / 'missing'}: the output folder does not exist"):
        save_checkpoint(tmp_path / "missing" / "teacher.safetensors", TENSORS, MANIFEST)


def test_a_disk_that_is_full_at_the_end_leaves_the_old_file(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = checkpoint.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); free some space") as error:
        save_checkpoint(checkpoint, {"weight": np.zeros(3)}, MANIFEST)
    assert "\n" not in str(error.value)
    assert checkpoint.read_bytes() == before
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


def test_a_disk_that_is_full_on_the_way_leaves_the_old_file(checkpoint: Path) -> None:
    """A limit on file size makes the kernel refuse the write part of the way, as a full disk does."""
    before = checkpoint.read_bytes()
    program = """
import resource, sys
from pathlib import Path
import numpy as np
from harness.checkpoint import save_checkpoint
from harness.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_checkpoint(Path(sys.argv[1]), {"weight": np.zeros(100_000)}, {})
except UserError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(checkpoint)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.count("\n") == 1
    assert f"{checkpoint}: cannot be written" in run.stdout
    assert checkpoint.read_bytes() == before
    assert os.listdir(checkpoint.parent) == [checkpoint.name]
