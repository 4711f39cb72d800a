"""Captions of the shapes: natural, of varied wording, and complete.

What a caption leaves unsaid is the plain case: an object without a size is large, without a position in the centre,
without a background on white. So every caption names one scene, and "a red circle left of a small blue square" does.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from harness.noise import Noise

WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
    "red": ("red",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan",),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "small": ("small", "little"),
    "large": ("large", "big", ""),
    "centre": ("in the centre", "in the middle", ""),
    "top left": ("in the top left", "at the top left", "in the upper left corner"),
    "top right": ("in the top right", "at the top right", "in the upper right corner"),
    "bottom left": ("in the bottom left", "at the bottom left", "in the lower left corner"),
    "bottom right": ("in the bottom right", "at the bottom right", "in the lower right corner"),
    "white": ("on a white background", "on white", ""),
    "grey": ("on a grey background", "on grey", "against a grey background"),
    "black": ("on a black background", "on black", "against a black background"),
    "left of": ("{a} left of {b}", "{a} to the left of {b}", "{b} right of {a}", "{b} to the right of {a}"),
    "above": ("{a} above {b}", "{a} over {b}", "{b} below {a}", "{b} under {a}"),
}
"""The wordings of each value; "" leaves it unsaid."""
ONE_OBJECT = ("{a} {position} {background}", "{background} {a} {position}", "{position} {a} {background}")
TWO_OBJECTS = ("{position} {background}", "{background} {position}")
DRAWS = 9
VOCABULARY = tuple(sorted({w for texts in WORDS.values() for t in texts for w in t.split() if "{" not in w} | {"a"}))
"""Every word that a caption may hold."""


def caption_scenes(
    scenes: np.ndarray, attributes: Mapping[str, Sequence[str]], noise: Noise, purpose: str
) -> np.ndarray:
    """One caption for each of the scenes (structured, n); caption i depends on noise, scene and i alone."""
    draws = noise.uniform(purpose, 0, 0, len(scenes), (DRAWS,)).tolist()
    fields = [field for field in scenes.dtype.names or ()]
    rows = scenes.tolist()
    captions = [
        _caption({f: attributes[f.rstrip("2")][v] for f, v in zip(fields, row, strict=True) if v >= 0}, uniform)
        for row, uniform in zip(rows, draws, strict=True)
    ]
    return np.array(captions, np.dtypes.StringDType())


def _caption(scene: Mapping[str, str], uniform: Sequence[float]) -> str:
    draws = iter(uniform)

    def one_of(wordings: Sequence[str]) -> str:
        return wordings[int(next(draws) * len(wordings))]

    objects = {
        name: "a " + " ".join(one_of(WORDS[scene[field + suffix]]) for field in ("size", "colour", "shape"))
        for name, suffix in (("a", ""), ("b", "2"))
        if "shape" + suffix in scene
    }
    position, background = one_of(WORDS[scene["position"]]), one_of(WORDS[scene["background"]])
    pattern = one_of(TWO_OBJECTS if "b" in objects else ONE_OBJECT)
    text = pattern.format(position=position.format(**objects), background=background, **objects)
    return " ".join(text.split())  # without the gaps of what is unsaid
