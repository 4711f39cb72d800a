"""Random weights in the exact formats of the published files, small where the format leaves the size open."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.metrics.config import ExtractorConfig


def configured(name: str, path: Path) -> ExtractorConfig:
    """The extractor with these weights, their hash stated."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return ExtractorConfig(name=name, weights=str(path), sha256=sha256)


def random_images(n: int, height: int = 24, width: int = 20, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Blurry uint8 images (n, channels, height, width): unlike white noise they survive a resize."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, channels, 4, 4))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return coarse[:, :, rows][:, :, :, columns].astype(np.uint8)


def write_folder(folder: Path, images: np.ndarray) -> Path:
    """Images (n, 1 or 3, h, w) as PNG files in their order."""
    from PIL import Image

    folder.mkdir(parents=True)
    for row, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{row:05d}.png")
    return folder


@pytest.fixture(scope="session")
def inception_network() -> Any:
    """torchvision's Inception, which has the keys and shapes of FID's, with features of mean 0.15 and deviation 0.2."""
    import torch
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, aux_logits=False, num_classes=1008, init_weights=False, transform_input=False)
    generator = torch.Generator().manual_seed(0)
    for key, value in network.state_dict().items():
        if value.ndim == 4:
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
        elif key == "fc.weight":
            value.copy_(torch.randn(value.shape, generator=generator) * value.shape[1] ** -0.5)
        elif key == "fc.bias":
            value.zero_()
    return network.eval()


@pytest.fixture(scope="session")
def inception_file(inception_network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict, as torch-fidelity and pytorch-fid read it."""
    import torch

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(inception_network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def torchscript_file(inception_network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript archive with `layers`, and a resize of its own, as clean-fid reads it."""
    import torch

    class Detector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(*list(inception_network.children())[:-2], torch.nn.Flatten())

        def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            resized = torch.nn.functional.interpolate(images, size=[299, 299], mode="bilinear", align_corners=False)
            return self.layers((resized - 128) / 128)

    path = tmp_path_factory.mktemp("torchscript") / "inception-2015-12-05.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and the file is what it is
        torch.jit.script(Detector().eval()).save(str(path))
    return path


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DINOv2 as transformers saves it; positions are interpolated, as in the published one."""
    import torch
    from transformers import Dinov2Config, Dinov2Model
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=98, patch_size=14)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Dinov2Model(config)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP as OpenAI archived it: TorchScript, with the tokeniser's whole vocabulary."""
    import torch
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=2, width=64, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, quick_gelu=True)

    def archived(module: torch.nn.Module) -> torch.nn.Module:
        """The module's tensors alone, scriptable."""
        holder = torch.nn.Module()
        for name, parameter in module.named_parameters(recurse=False):
            holder.register_parameter(name, parameter)
        for name, child in module.named_children():
            holder.add_module(name, archived(child))
        return holder

    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(archived(network)).save(str(path))
    return path
