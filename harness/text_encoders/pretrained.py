"""Folders of published weights: which files decide the features, and their hash. Imports no network library."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.text_encoders.config import TextConfig

DATA_FOLDER = "FEWSTEP_DATA"
"""As in harness.datasets.files, which cannot be imported where Pillow is not installed."""


@dataclass(frozen=True)
class Format:
    """The files of one encoder that decide its features.

    required: of each group the first that is there; further: patterns of names, which may be there; remedy: how to come
    by what is missing.
    """

    required: tuple[tuple[str, ...], ...]
    further: tuple[str, ...]
    remedy: str


FORMATS = {
    "t5": Format(
        (("config.json",), ("model.safetensors", "model.safetensors.index.json"), ("tokenizer.json",)),
        ("model-*.safetensors",),
        "transformers' save_pretrained writes it, of the model and of its tokenizer",
    ),
    "open-clip": Format(
        (("open_clip_config.json",), ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
        (),
        "the folder is as open_clip keeps a model on the Hugging Face hub",
    ),
}


@dataclass(frozen=True)
class WeightFiles:
    """Files of one folder that are there, in the order of their names, and their hash.

    sha256: SHA-256 (hex) of the lines that `sha256sum FILE...` prints in that folder.
    """

    folder: Path
    paths: tuple[Path, ...]
    sha256: str

    def one(self, *names: str) -> Path:
        """The file that has one of these names."""
        return next(path for path in self.paths if path.name in names)

    def refuse(self, reason: object) -> UserError:
        """The error for content that the encoder cannot read, or that does not fit together."""
        first = " ".join(str(reason).split())[:200]
        return UserError(f"{self.folder}: not weights of this text encoder ({first}); name another folder, or encoder")


def locate(config: TextConfig) -> tuple[Path, ...]:
    """The files of an encoder that reads published weights. Raises UserError, naming the path, where one is missing."""
    assert config.weights is not None
    folder = Path(os.environ.get(DATA_FOLDER, ""), Path(config.weights).expanduser())
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; set {DATA_FOLDER} to the folder that holds {config.weights!r}, "
            "or correct text.weights in the profile"
        )
    known = FORMATS[config.encoder]
    found = {path for pattern in known.further for path in folder.glob(pattern) if path.is_file()}
    for group in known.required:
        path = next((folder / name for name in group if (folder / name).is_file()), None)
        if path is None:
            others = f" (nor {' nor '.join(group[1:])})" if group[1:] else ""
            raise UserError(
                f"{folder / group[0]}: no such file{others}, and the text encoder {config.encoder!r} needs it; "
                f"{known.remedy}"
            )
        found.add(path)
    return tuple(sorted(found))


def read(config: TextConfig) -> WeightFiles:
    """Hash the files of an encoder and compare the hash with the stated one, before anything is parsed.

    Raises UserError where a file is missing, or the hash is another one.
    """
    paths, lines = locate(config), hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            lines.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode())
    found, folder = lines.hexdigest(), paths[0].parent
    if config.sha256 not in (None, found):
        raise UserError(
            f"{folder}: the sha256 {found} of its files is not the stated {config.sha256}; restore the files, or state "
            "the hash of your own (text.sha256)"
        )
    return WeightFiles(folder, paths, found)
