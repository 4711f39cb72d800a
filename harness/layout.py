"""Where everything that a profile generates lies."""

from pathlib import Path

from harness.addresses import RunAddress, Setting, guidance_suffix
from harness.registry import get_method


class Layout:
    """The files of one profile below `root`."""

    root: Path

    def data(self, split: str) -> Path:
        """Images and labels of one split (train, heldout)."""
        return self.root / "data" / f"{split}.npz"

    def text(self, split: str) -> Path:
        """Features of the captions of one split."""
        return self.root / "text" / f"{split}.npz"

    def reference(self, split: str) -> Path:
        """Reference features and statistics of one split."""
        return self.root / "reference" / f"{split}.npz"

    @property
    def features(self) -> Path:
        """The cache of features of images, by content."""
        return self.root / "features"

    @property
    def floor(self) -> Path:
        """The record of the real-data floor."""
        return self.root / "reference" / "metrics-real-data.json"

    @property
    def extractor_report(self) -> Path:
        """The validated accuracy of the extractor."""
        return self.root / "extractor.json"

    @property
    def clip_report(self) -> Path:
        """What is known of the CLIP of the CLIP score."""
        return self.root / "clip.json"

    def run(self, address: RunAddress) -> Path:
        """The folder of one run."""
        return self.root / address.folder

    def pairs(self, teacher: RunAddress, guidance: float) -> Path:
        """Pairs of noise and image along a teacher's deterministic sampler."""
        return self.run(teacher) / f"pairs{guidance_suffix(guidance)}.safetensors"

    def checkpoint(self, address: RunAddress) -> Path:
        """The result of one run."""
        return self.run(address) / f"{get_method(address.method).result}.safetensors"

    def selected(self, address: RunAddress, setting: Setting) -> Path:
        """The record of the best of a run's evaluations during training."""
        return self.run(address) / f"selected-{setting.name}.json"
