"""Atomic files: the old content or the new, and nothing beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.files import write_atomic


@pytest.mark.parametrize(("content", "expected"), [("äöü\n", "äöü\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")])
def test_writes_the_content_and_nothing_else(tmp_path, content, expected):
    path = tmp_path / "file.json"
    path.write_bytes(b"old and longer than the new one")
    write_atomic(path, content)
    assert path.read_bytes() == expected
    assert os.listdir(tmp_path) == ["file.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_reader_of_the_old_file_keeps_all_of_it(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")
    with path.open() as reader:
        write_atomic(path, "new")
        assert reader.read() == "old"


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    path.write_text("old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_full_disk_is_a_user_error_and_leaves_the_old_file(tmp_path):
    """A limit on file size makes the kernel refuse the write part of the way, as a full disk does."""
    path = tmp_path / "file.json"
    path.write_text("old")
    program = """
import resource, sys
from harness.errors import UserError
from harness.files import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic(sys.argv[1], b"x" * 100_000)
except UserError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.count("\n") == 1
    assert f"{path}: cannot be written" in run.stdout
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'missing'}: the output folder does not exist"):
        write_atomic(tmp_path / "missing" / "file.json", "new")


def test_a_folder_in_the_way_is_a_user_error(tmp_path):
    (tmp_path / "file.json").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_atomic(Path(tmp_path, "file.json"), "new")
    assert os.listdir(tmp_path) == ["file.json"]
