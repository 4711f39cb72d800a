"""A small profile for tests, and variations of it."""

from pathlib import Path
from typing import Any

import yaml

MATCHING = "moment-matching/alternating"
OPTIMISER = {"learning_rate": 1e-3, "beta1": 0.0, "beta2": 0.99, "eps": 1e-8, "warmup_updates": 2, "clip": 1.0}
LENGTH = {"batch": 4, "updates": 6, "checkpoint_every": 2}
CONTENT: dict[str, Any] = {
    "seeds": [0],
    "backends": ["torch", "jax"],
    "data": {"name": "digits"},
    "extractor": "digits-cnn",
    "network": {"patch": 2, "width": 16, "depth": 1, "heads": 2},
    "clock": {"name": "karras", "sigma_max": 40.0},
    "teacher": {
        **LENGTH,
        "optimiser": {**OPTIMISER, "beta1": 0.9},
        "label_dropout": 0.25,
        "ema_decay": 0.5,
        "weight": "flat",
        "samplers": {"ancestral": [1, 4], "ddim": [2]},
    },
    "methods": [{"id": MATCHING, "steps": [2], **LENGTH, "optimiser": OPTIMISER}],
    "evaluation": {"n_samples": 20, "batch": 7},
    "log_every": 2,
}


def edited(content: Any, changes: dict[str, Any]) -> Any:
    """A copy of the content with the values of dotted keys replaced or added; lists are indexed by position."""
    if not isinstance(content, dict | list):
        return content
    items = dict(enumerate(content)) if isinstance(content, list) else dict(content)
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        place = int(head) if isinstance(content, list) else head
        items[place] = edited(items.get(place, {}), {rest: value}) if rest else value
    return list(items.values()) if isinstance(content, list) else items


def write_profile(path: Path, changes: dict[str, Any] | None = None) -> str:
    """Write the small profile with changes to `path`; returns the path as the command line takes it."""
    path.write_text(yaml.safe_dump(edited(CONTENT, changes or {}), sort_keys=False))
    return str(path)
