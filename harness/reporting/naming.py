"""How metrics are named, for tables and for verbs that need no pandas."""

from typing import Any


def frechet(extractor: str) -> str:
    """The Fréchet distance's name: FID with Inception-v3 and the project's own classifiers, FD with other features."""
    return "FID" if extractor.startswith("inception-v3") or extractor in ("digits-cnn", "shapes-cnn") else "FD"


def sample_count(n: Any) -> str:
    """A number of samples as part of a metric's name, exact: 10k, 50k, 2048."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)
