"""Captioned shapes: images of 16x16 pixels with one object or two, drawn from a seed, and what each of them shows.

A *scene* is a combination of attributes; its number is the label of an image. Size, place and colours vary a little
within a scene, the caption varies in its words (`shapes_captions`). One scene in five is never trained on (`HELD_OUT`).
Whole numbers throughout, from addressed draws: the same pixels on every platform.
"""

import numpy as np

from harness.datasets import ImageSet, Split
from harness.datasets.shapes_captions import caption_scenes
from harness.noise import Noise

SIZE = 16
SEED = 0
COUNTS = {"train": 20_000, "heldout": 5_000, "validation": 5_000}
TWO_OBJECTS = 1 / 3  # share of the images

# The tables number the attributes' values in this order.
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 40, 40),
    "yellow": (240, 210, 30),
    "green": (30, 160, 60),
    "cyan": (40, 200, 220),
    "blue": (40, 70, 220),
    "purple": (170, 50, 190),
}
SIZES = {"small": 2.25, "large": 3.375}  # radius, pixels
BACKGROUNDS = {"white": (245, 245, 245), "grey": (128, 128, 128), "black": (10, 10, 10)}
POSITIONS = {  # centre of the object, or of both, as (column, row) in pixels
    "centre": ((8, 8),),
    "top left": ((4, 4),),
    "top right": ((12, 4),),
    "bottom left": ((4, 12),),
    "bottom right": ((12, 12),),
    "left of": ((4, 8), (12, 8)),
    "above": ((8, 4), (8, 12)),
}
ATTRIBUTES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "position": tuple(POSITIONS),
    "background": tuple(BACKGROUNDS),
}
"""The values of each attribute of the first object; of the second there are `shape2`, `colour2` and `size2`."""

UNIT = 64  # coordinates are whole numbers of 1/64 pixel
SUPERSAMPLING = 4  # samples along each side of a pixel
PLACE_JITTER = UNIT // 2
RADIUS_JITTER = UNIT // 8
COLOUR_JITTER = 10
CHUNK = 1_000  # images rendered at a time


def _scenes() -> np.ndarray:
    """All scenes, those of one object first; the fields of a second object that is not there are -1."""
    singles = sum(len(centres) == 1 for centres in POSITIONS.values())
    relations = len(POSITIONS) - singles
    shapes, colours, sizes, backgrounds = len(SHAPES), len(COLOURS), len(SIZES), len(BACKGROUNDS)
    one = np.indices((shapes, colours, sizes, singles, backgrounds)).reshape(5, -1)
    # the two colours differ: their difference, less one, is counted
    two = np.indices((shapes, colours, sizes, relations, backgrounds, shapes, colours - 1, sizes)).reshape(8, -1)
    two[3] += singles
    two[6] = (two[1] + 1 + two[6]) % colours
    rows = np.concatenate([np.pad(one, ((0, 3), (0, 0)), constant_values=-1), two], axis=1)
    fields = (*ATTRIBUTES, "shape2", "colour2", "size2")
    return np.rec.fromarrays(rows, dtype=[(field, np.int64) for field in fields])


SCENES = _scenes()
"""Structured (number of scenes,): the attributes of each scene, as numbers of their values."""
SINGLE = SCENES["shape2"] < 0
"""Which scenes have one object."""
HELD_OUT = (
    SCENES["shape"] + 2 * SCENES["colour"] + 3 * SCENES["shape2"] + SCENES["colour2"] - SCENES["position"]
) % 5 == 0
"""Which scenes are never trained on.

Of one object: for each shape and colour, one of the five positions. So every pair of values is seen in training, and
size and background are no part of the rule. Of two objects: a fifth of the shapes and colours, in the same manner.
"""


def load(split: Split) -> ImageSet:
    """Load `split`: uint8 images (n, 3, 16, 16), the scenes' numbers as labels, captions.

    n = 20,000 (train), 5,000 (heldout: scenes that are never trained on), 5,000 (validation: further images of scenes
    that are) or 25,000 (all).
    """
    if split == "all":
        parts = load("train"), load("heldout")
        images, labels, captions = (
            np.concatenate([getattr(part, field) for part in parts]) for field in ("images", "labels", "captions")
        )
        return ImageSet("shapes", split, images, labels, len(SCENES), captions)
    return draw(split, COUNTS[split], HELD_OUT if split == "heldout" else ~HELD_OUT)


def draw(name: str, count: int, allowed: np.ndarray) -> ImageSet:
    """Draw `count` images of the scenes that are `allowed` (boolean, one of each); `name` keeps the draws apart."""
    noise = Noise(SEED)
    one, two = np.flatnonzero(allowed & SINGLE), np.flatnonzero(allowed & ~SINGLE)
    kind, place = noise.uniform(f"shapes/{name}/scenes", 0, 0, count, (2,)).astype(np.float64).T
    scenes = np.where(
        kind < TWO_OBJECTS, two[(place * len(two)).astype(np.int64)], one[(place * len(one)).astype(np.int64)]
    )
    captions = caption_scenes(SCENES[scenes], ATTRIBUTES, noise, f"shapes/{name}/captions")
    return ImageSet("shapes", name, render(scenes, noise, f"shapes/{name}/images"), scenes, len(SCENES), captions)


def render(scenes: np.ndarray, noise: Noise, purpose: str) -> np.ndarray:
    """Draw the scenes with these numbers (n,): uint8 (n, 3, 16, 16). Image i depends on noise, scene and i alone."""
    images = np.empty((len(scenes), 3, SIZE, SIZE), np.uint8)
    for start in range(0, len(scenes), CHUNK):
        chunk = SCENES[scenes[start : start + CHUNK]]
        images[start : start + CHUNK] = _render_chunk(chunk, noise.uniform(purpose, 0, start, len(chunk), (13,)))
    return images


def _render_chunk(scenes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    background = _jittered_colour(BACKGROUNDS, scenes["background"], uniform[:, :1])  # darker or lighter, not tinted
    canvas = np.tile(background[:, :, None, None], (1, 1, SIZE, SIZE))
    for ordinal, (suffix, draws) in enumerate((("", uniform[:, 1:7]), ("2", uniform[:, 7:]))):
        drawn = np.flatnonzero(scenes[f"shape{suffix}"] >= 0)
        objects, draws = scenes[drawn], draws[drawn]
        centres = np.array([places[min(ordinal, len(places) - 1)] for places in POSITIONS.values()]) * UNIT
        centre = centres[objects["position"]] + _whole(draws[:, :2], PLACE_JITTER)
        radii = np.array([int(radius * UNIT) for radius in SIZES.values()])
        radius = radii[objects[f"size{suffix}"]] + _whole(draws[:, 2], RADIUS_JITTER)
        colour = _jittered_colour(COLOURS, objects[f"colour{suffix}"], draws[:, 3:])[:, :, None, None]
        covered = _coverage(objects[f"shape{suffix}"], centre, radius)[:, None]
        full = SUPERSAMPLING**2
        canvas[drawn] = (canvas[drawn] * (full - covered) + colour * covered + full // 2) // full
    return canvas.astype(np.uint8)


def _coverage(shapes: np.ndarray, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How many of the samples of each pixel lie in the object: (n, 16, 16)."""
    spacing = UNIT // SUPERSAMPLING
    grid = np.arange(SIZE * SUPERSAMPLING, dtype=np.int32) * spacing + spacing // 2
    inside = np.empty((len(shapes), len(grid), len(grid)), bool)
    for number, shape in enumerate(SHAPES):
        rows = np.flatnonzero(shapes == number)
        x = grid[None, None, :] - centre[rows, 0, None, None].astype(np.int32)
        y = grid[None, :, None] - centre[rows, 1, None, None].astype(np.int32)
        inside[rows] = _inside(shape, x, y, radius[rows, None, None].astype(np.int32))
    counts = inside.reshape(len(shapes), SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING)
    return counts.sum(axis=(2, 4), dtype=np.int64)


def _inside(shape: str, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    match shape:
        case "circle":
            return x * x + y * y <= r * r
        case "square":
            return (8 * abs(x) <= 7 * r) & (8 * abs(y) <= 7 * r)
        case "triangle":  # its apex at the top, a base of 2r three quarters of r below the centre
            return (7 * abs(x) <= 4 * (y + r)) & (4 * y <= 3 * r)
        case "cross":  # arms of 2/3 r
            return ((3 * abs(x) <= r) & (abs(y) <= r)) | ((3 * abs(y) <= r) & (abs(x) <= r))
        case _:
            raise ValueError(shape)


def _jittered_colour(colours: dict[str, tuple[int, int, int]], chosen: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """(n, 3), each channel in [0, 255]."""
    return (np.array(list(colours.values()))[chosen] + _whole(uniform, COLOUR_JITTER)).clip(0, 255)


def _whole(uniform: np.ndarray, limit: int) -> np.ndarray:
    """Uniform whole numbers from -limit to limit."""
    return (uniform.astype(np.float64) * (2 * limit + 1)).astype(np.int64) - limit
