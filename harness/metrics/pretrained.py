"""Published weights: where they lie, which hash they must have, and how they are fetched. Imports no network library.

Nothing is downloaded unless `download` is called, and nothing is parsed before its SHA-256 was compared.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from harness.errors import UserError
from harness.metrics.config import ExtractorConfig

DINOV2_REVISION = "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"


@contextmanager
def libraries_for(purpose: str) -> Iterator[None]:
    """Raises UserError, saying how to install it, where a library that `purpose` needs is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        remedy = "pip install 'fewstep[metrics]'"
        raise UserError(f"{purpose} needs {error.name}, which is not installed; {remedy}") from None


def torch_cache() -> Path:
    """Where PyTorch keeps downloaded weights."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home, "hub", "checkpoints").expanduser()


def clip_cache() -> Path:
    """Where open_clip and OpenAI's own package keep OpenAI's weights."""
    return Path("~/.cache/clip").expanduser()


def dinov2_cache() -> Path:
    """Where transformers keeps the model facebook/dinov2-large."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, "models--facebook--dinov2-large", "snapshots", DINOV2_REVISION)


@dataclass(frozen=True)
class Published:
    """The published weights of one extractor.

    module: has `load(name, weights)` and `download(name, folder)`; file: their usual file name; cache: the folder in
    which their library's users have them.
    """

    module: str
    file: str
    sha256: str
    cache: Callable[[], Path]


_TF_INCEPTION = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_TORCHSCRIPT_INCEPTION = Published(
    "harness.metrics.clean_inception",
    "inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    torch_cache,
)

PRETRAINED = {
    "inception-v3-compat": Published(
        "harness.metrics.inception", "weights-inception-2015-12-05-6726825d.pth", _TF_INCEPTION, torch_cache
    ),
    "inception-v3-clean": _TORCHSCRIPT_INCEPTION,
    "inception-v3-legacy-pytorch": Published(
        "harness.metrics.clean_inception", "pt_inception-2015-12-05-6726825d.pth", _TF_INCEPTION, torch_cache
    ),
    "inception-v3-legacy-tensorflow": _TORCHSCRIPT_INCEPTION,
    "dinov2-vit-l-14": Published(
        "harness.metrics.dinov2",
        "model.safetensors",
        "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
        dinov2_cache,
    ),
    "clip-vit-l-14": Published(
        "harness.metrics.clip",
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        clip_cache,
    ),
    "clip-vit-l-14-336": Published(
        "harness.metrics.clip",
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        clip_cache,
    ),
}


@dataclass(frozen=True)
class Weights:
    """The content of a weights file whose hash was compared, and its full SHA-256 (hex)."""

    path: Path
    content: bytes
    sha256: str

    def refuse(self, reason: object) -> UserError:
        """The error for content in another format than the extractor reads."""
        first = str(reason).strip().partition("\n")[0][:200]
        return UserError(f"{self.path}: not weights of this extractor ({first}); name another file, or another one")


def locate(config: ExtractorConfig) -> Path:
    """The weights file of a pretrained extractor: the given one, else the one in the user's cache.

    Raises UserError, naming the path, where there is none.
    """
    published = PRETRAINED[config.name]
    path = published.cache() / published.file if config.weights is None else Path(config.weights).expanduser()
    if path.is_dir():
        path = path / published.file
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; the extractor {config.name!r} needs the weights {published.file}: "
            f"fewstep extractor --download {config.name}, or name the file where you have it (weights)"
        )
    return path


def read(config: ExtractorConfig) -> Weights:
    """Read the weights file whole and compare its hash with the stated or the published one.

    Raises UserError where the file is absent or is another one.
    """
    path = locate(config)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    _require(path, found, config.sha256, PRETRAINED[config.name])
    return Weights(path, content, found)


@libraries_for("extractor --download")
def download(name: str) -> Path:
    """Fetch published weights into the user's cache by their library's own means; keeps what is there already.

    Raises UserError where `name` has no published weights, they cannot be fetched, or are not the published ones, and
    where their library is not installed.
    """
    if name not in PRETRAINED:
        raise UserError(f"the extractor {name!r} has no weights to download; those that have: {', '.join(PRETRAINED)}")
    published = PRETRAINED[name]
    folder = published.cache()
    path = folder / published.file
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fewstep-") as temporary:
            try:
                fetched = import_module(published.module).download(name, Path(temporary))
            except (OSError, RuntimeError) as error:
                first = str(error).partition("\n")[0]
                raise UserError(f"{path}: cannot be downloaded ({first}); fetch it by other means") from None
            _require(fetched, hashlib.sha256(fetched.read_bytes()).hexdigest(), None, published)
            os.replace(fetched, path)
    read(ExtractorConfig(name=name))
    return path


def _require(path: Path, found: str, stated: str | None, published: Published) -> None:
    if found != (stated or published.sha256):
        expected = f"the stated {stated}" if stated else f"that of the published {published.file}, {published.sha256}"
        raise UserError(
            f"{path}: its sha256 {found} is not {expected}; restore the file, or state the hash of your own (sha256)"
        )
