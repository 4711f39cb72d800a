"""The captioned shapes: what is drawn is what the scene says, in words and in pixels; held-out scenes stay out."""

import itertools

import numpy as np
import pytest

from harness.datasets import ImageSet, load_dataset
from harness.datasets import shapes as module
from harness.datasets.shapes import ATTRIBUTES, BACKGROUNDS, COLOURS, HELD_OUT, POSITIONS, SCENES, SINGLE, SIZES, render
from harness.datasets.shapes_captions import VOCABULARY, WORDS, caption_scenes
from harness.noise import Noise

FIELDS = SCENES.dtype.names


@pytest.fixture(scope="module")
def sets() -> dict[str, ImageSet]:
    return {split: load_dataset("shapes", split) for split in ("train", "heldout", "validation")}


def test_scenes_are_all_combinations_and_every_one_once() -> None:
    assert SINGLE.sum() == 4 * 6 * 2 * 5 * 3
    assert (~SINGLE).sum() == (4 * 6 * 2) * (4 * 5 * 2) * 2 * 3
    assert len({tuple(row) for row in SCENES.tolist()}) == len(SCENES)
    two = SCENES[~SINGLE]
    assert (two["colour"] != two["colour2"]).all()
    assert all(len(POSITIONS[ATTRIBUTES["position"][p]]) == 2 for p in np.unique(two["position"]))


def test_splits_have_their_sizes_and_train_and_heldout_are_the_whole(sets: dict[str, ImageSet]) -> None:
    assert {split: len(images) for split, images in sets.items()} == module.COUNTS
    whole = load_dataset("shapes", "all")
    for field in ("images", "labels", "captions"):
        parts = [getattr(sets[split], field) for split in ("train", "heldout")]
        np.testing.assert_array_equal(np.concatenate(parts), getattr(whole, field))


def test_heldout_scenes_occur_in_no_other_split_but_every_pair_of_values_does(sets: dict[str, ImageSet]) -> None:
    assert HELD_OUT[SINGLE].mean() == HELD_OUT[~SINGLE].mean() == 0.2
    assert HELD_OUT[sets["heldout"].labels].all()
    assert not HELD_OUT[sets["train"].labels].any()
    assert not HELD_OUT[sets["validation"].labels].any()
    train = SCENES[sets["train"].labels]
    one = SINGLE[sets["train"].labels]
    for a, b in itertools.combinations(ATTRIBUTES, 2):
        assert len({*zip(train[one][a], train[one][b], strict=True)}) == np.unique(SCENES[SINGLE][[a, b]]).size
    for a, b in itertools.combinations(FIELDS, 2):
        assert len({*zip(train[~one][a], train[~one][b], strict=True)}) == np.unique(SCENES[~SINGLE][[a, b]]).size
    for shape, colour in itertools.product(range(4), range(6)):  # the rule as it is told
        chosen = SINGLE & HELD_OUT & (SCENES["shape"] == shape) & (SCENES["colour"] == colour)
        assert np.unique(SCENES["position"][chosen]).size == 1


def test_no_image_occurs_twice_and_both_kinds_have_their_share(sets: dict[str, ImageSet]) -> None:
    images = [image.tobytes() for part in sets.values() for image in part.images]
    assert len(set(images)) == len(images)
    for part in sets.values():
        assert SINGLE[part.labels].mean() == pytest.approx(2 / 3, abs=0.02)  # three standard errors


def test_an_image_depends_on_its_scene_and_its_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = np.arange(0, len(SCENES), 100)
    whole = render(scenes, Noise(3), "some")
    monkeypatch.setattr(module, "CHUNK", 7)
    np.testing.assert_array_equal(render(scenes, Noise(3), "some"), whole)
    other = np.where(np.arange(len(scenes)) % 2, scenes, 0)
    np.testing.assert_array_equal(render(other, Noise(3), "some")[1::2], whole[1::2])
    assert (render(scenes, Noise(4), "some") != whole).any(axis=(1, 2, 3)).all()


AREAS = {"circle": np.pi, "square": (7 / 4) ** 2, "triangle": 7 / 4, "cross": 4 * 2 / 3 - (2 / 3) ** 2}  # of radius 1


@pytest.mark.parametrize("shape", AREAS)
@pytest.mark.parametrize("size", SIZES)
def test_shapes_cover_the_area_of_their_formula(shape: str, size: str) -> None:
    count, radius = 400, SIZES[size]
    scene = (SCENES["shape"] == ATTRIBUTES["shape"].index(shape)) & (SCENES["size"] == list(SIZES).index(size))
    scene &= SINGLE & (SCENES["background"] == 2) & (SCENES["colour"] == list(COLOURS).index("yellow"))
    images = render(np.flatnonzero(scene)[np.arange(count) % scene.sum()], Noise(0), "areas").astype(np.float64)
    contrast = images[:, 0] - np.median(images[:, 0], axis=(1, 2), keepdims=True)  # black and yellow: most in red
    covered = contrast.sum(axis=(1, 2)) / contrast.max(axis=(1, 2))
    # the mean of (r + jitter)^2 exceeds r^2 by less than a thousandth
    assert covered.mean() == pytest.approx(AREAS[shape] * radius**2, rel=0.03)


def test_colours_and_backgrounds_are_read_where_the_position_says(sets: dict[str, ImageSet]) -> None:
    images, scenes = sets["validation"].images.astype(np.float64), SCENES[sets["validation"].labels]
    colours = np.array(list(COLOURS.values()))
    for image, scene in zip(images[:600], scenes[:600], strict=True):
        border = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], axis=1)
        background = list(BACKGROUNDS.values())[scene["background"]]
        assert np.abs(np.median(border, axis=1) - background).max() <= module.COLOUR_JITTER
        places = POSITIONS[ATTRIBUTES["position"][scene["position"]]]
        for (column, row), field in zip(places, ("colour", "colour2"), strict=False):
            centre = image[:, row - 1 : row + 1, column - 1 : column + 1].reshape(3, 4).T
            distance = np.abs(centre[:, None] - colours).max(axis=2)  # (4 pixels, colours)
            assert distance.min(axis=0).argmin() == scene[field]


def test_a_caption_names_one_scene(sets: dict[str, ImageSet]) -> None:
    named: dict[str, set[int]] = {}
    for part in sets.values():
        for caption, scene in zip(part.captions.tolist(), part.labels.tolist(), strict=True):
            named.setdefault(caption, set()).add(scene)
    assert all(len(scenes) == 1 for scenes in named.values())
    assert len(named) > 15_000
    words = {word for caption in named for word in caption.split()}
    assert words == set(VOCABULARY)
    assert max(len(caption.split()) for caption in named) == 16


def read(words: list[str], values: tuple[str, ...], unsaid: str) -> int:
    """Which value the words name, by their own table of synonyms."""
    synonyms = {"disc": "circle", "plus": "cross", "violet": "purple", "little": "small", "big": "large"}
    found = [synonyms.get(word, word) for word in words if synonyms.get(word, word) in values]
    assert len(found) <= 1
    return values.index(found[0] if found else unsaid)


def test_captions_say_what_the_scene_is(sets: dict[str, ImageSet]) -> None:
    heights = {"top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom"}
    relations = {"left": (5, 1), "right": (5, -1), "above": (6, 1), "over": (6, 1), "below": (6, -1), "under": (6, -1)}
    for caption, scene in zip(sets["heldout"].captions.tolist(), SCENES[sets["heldout"].labels], strict=True):
        words = caption.split()
        background = read(words, tuple(BACKGROUNDS), "white")
        if scene["shape2"] < 0:
            height = next((heights[word] for word in words if word in heights), None)
            side = next((word for word in words if word in ("left", "right")), None)
            position = ATTRIBUTES["position"].index(f"{height} {side}" if height else "centre")
            objects = [words]
        else:
            at = next(i for i, word in enumerate(words) if word in relations)
            position, order = relations[words[at]]
            objects = [words[:at], words[at:]][::order]
        expected = [position, background]
        found = [scene["position"], scene["background"]]
        for suffix, part in zip(("", "2"), objects, strict=False):
            expected += [read(part, ATTRIBUTES["shape"], ""), read(part, ATTRIBUTES["colour"], "")]
            expected += [read(part, ATTRIBUTES["size"], "large")]
            found += [scene["shape" + suffix], scene["colour" + suffix], scene["size" + suffix]]
        assert expected == found, caption


def test_every_wording_is_used_and_the_plain_case_is_left_unsaid(sets: dict[str, ImageSet]) -> None:
    captions = sets["train"].captions.tolist()
    for wording in (text for texts in WORDS.values() for text in texts if text and "{" not in text):
        assert any(f" {wording} " in f" {caption} " for caption in captions)
    scene = SCENES[[i for i, row in enumerate(SCENES.tolist()) if row == (0, 0, 1, 5, 0, 1, 4, 0)]]
    said = set(caption_scenes(np.repeat(scene, 2000), ATTRIBUTES, Noise(0), "one scene").tolist())
    assert "a red circle left of a small blue square" in said
    assert len(said) > 100
