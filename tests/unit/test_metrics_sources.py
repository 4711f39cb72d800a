"""Image sources: the same pixels from files, npz and memory; one-line refusal of what is no set of images."""

import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from harness.datasets import load_dataset
from harness.datasets.archive import save_arrays
from harness.datasets.files import read_image
from harness.errors import UserError
from harness.metrics.images import QUANTISER
from harness.metrics.sources import from_array, open_images, read_captions
from tests.pretrained import random_images, write_folder

IMAGES = random_images(7, 6, 5)
NAMES = ["a.png", "b/c.png"]


def pixels(source, size=3):
    return np.concatenate(list(source.batches(size)))


@pytest.fixture(params=["folder", "own", "reference batch", "compressed"])
def written(request, tmp_path):
    """The images, written in each form."""
    if request.param == "folder":
        return write_folder(tmp_path / "images", IMAGES)
    path = tmp_path / "images.npz"
    last = IMAGES.transpose(0, 2, 3, 1)
    if request.param == "own":
        save_arrays(path, images=IMAGES, labels=np.zeros(7, np.int64))
    elif request.param == "reference batch":
        np.savez(path, last, mu=np.zeros(3), sigma=np.zeros((3, 3)))
    else:
        np.savez_compressed(path, last)
    return path


def test_every_form_gives_the_same_pixels_and_digest(written):
    source, memory = open_images(written), from_array(IMAGES)
    assert (len(source), source.shape) == (7, (3, 6, 5))
    np.testing.assert_array_equal(pixels(source), IMAGES)
    assert [len(batch) for batch in source.batches(3)] == [3, 3, 1]
    assert source.digest == memory.digest


def test_the_digest_knows_pixels_shape_and_number_but_no_order():
    digest = from_array(IMAGES).digest
    assert from_array(IMAGES[::-1]).digest == digest
    altered = IMAGES.copy()
    altered[0, 0, 0, 0] ^= 1
    others = [altered, IMAGES[:-1], np.concatenate([IMAGES, IMAGES[:1]]), IMAGES.reshape(7, 3, 5, 6)]
    assert len({digest, *(from_array(images).digest for images in others)}) == 5


def test_a_folder_is_grey_where_every_image_is(tmp_path):
    grey = random_images(3, 6, 5, channels=1)
    folder = write_folder(tmp_path / "images", grey)
    np.testing.assert_array_equal(pixels(open_images(folder)), grey)
    Image.fromarray(IMAGES[0].transpose(1, 2, 0)).save(folder / "colour.png")
    np.testing.assert_array_equal(pixels(open_images(folder))[:3], np.repeat(grey, 3, axis=1))


def test_names_are_paths_below_the_folder_in_order(tmp_path):
    folder = write_folder(tmp_path / "images", IMAGES[:2])
    write_folder(folder / "class", IMAGES[2:3])
    write_folder(folder / ".hidden", IMAGES)
    (folder / "notes.txt").write_text("no image")
    source = open_images(folder)
    assert source.names == ["00000.png", "00001.png", "class/00000.png"]


def test_jpeg_files_are_decoded_by_pillow(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a.JPG"
    Image.fromarray(IMAGES[0].transpose(1, 2, 0)).save(path, quality=90)
    with Image.open(path) as image:
        expected = np.asarray(image).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels(open_images(tmp_path / "images"))[0], expected)


def test_data_sets_of_this_project_are_quantised(tmp_path):
    digits = load_dataset("digits", "heldout")
    digits.save(tmp_path / "heldout.npz")
    np.testing.assert_array_equal(pixels(open_images(tmp_path / "heldout.npz"), 50), digits.pixels)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_are_read_in_constant_memory(tmp_path, save):
    save(tmp_path / "images.npz", np.zeros((2000, 64, 64, 3), np.uint8))  # 25 MB
    tracemalloc.start()
    source = open_images(tmp_path / "images.npz")
    assert sum(len(batch) for batch in source.batches(50)) == 2000
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_images_of_several_sizes_are_refused_by_file(tmp_path):
    folder = write_folder(tmp_path / "images", IMAGES)
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "00005.png")
    with pytest.raises(UserError, match=r"00005.png: 9x8 pixels, but 00000.png has 5x6; images must be of one size"):
        open_images(folder)


def test_damaged_images_are_refused_by_file(tmp_path):
    folder = write_folder(tmp_path / "images", random_images(3, 64, 64))
    content = (folder / "00001.png").read_bytes()
    (folder / "00001.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"00001.png: cannot be read as an image"):
        pixels(open_images(folder))
    (folder / "00002.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"00002.png: cannot be read as an image"):
        open_images(folder)


def test_more_than_8_bits_are_refused_rather_than_clipped(tmp_path):
    folder = write_folder(tmp_path / "images", IMAGES)
    Image.fromarray(np.full((6, 5), 40000, np.uint16)).save(folder / "00003.png")
    with pytest.raises(UserError, match=r"00003.png: more than 8 bits a channel .*; save it in 8 bits"):
        open_images(folder)
    with pytest.raises(UserError, match=r"00003.png: more than 8 bits a channel .*; save it in 8 bits"):
        read_image(folder / "00003.png", "00003.png")


def test_floats_say_how_they_were_quantised_and_must_be_in_the_range_of_this_project(tmp_path):
    floats = IMAGES.astype(np.float32) / 127.5 - 1
    np.savez(tmp_path / "a.npz", images=floats)
    source = open_images(tmp_path / "a.npz")
    np.testing.assert_array_equal(pixels(source), IMAGES)
    assert (source.quantiser, from_array(IMAGES).quantiser) == (QUANTISER, "none, 8 bits as given")
    np.savez(tmp_path / "b.npz", images=(floats + 1) / 2)
    with pytest.raises(UserError, match=r"b.npz: images has no negative value; floating point is \[-1, 1\] here"):
        open_images(tmp_path / "b.npz")


def test_a_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, random_images(50, 16, 16).transpose(0, 2, 3, 1))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as members:
        start = members.infolist()[0].header_offset
    content[start + 2000] ^= 1  # within the pixels: only the checksum tells
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"images.npz: truncated, altered"):
        pixels(open_images(path))
    path.write_bytes(content[:3000])
    with pytest.raises(UserError, match=r"images.npz: truncated, altered"):
        open_images(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 3))}, "has no array images or arr_0, but: mu, sigma"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, r"arr_0 must be uint8 \(n, h, w, 1 or 3\), not float32"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"arr_0 must be uint8 \(n, h, w, 1 or 3\), not uint8 \(2, 3"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, r"images must be uint8 or floating point \(n, 1 or 3, h, w\)"),
        ({"images": np.zeros((0, 3, 4, 4), np.uint8)}, r"images must be uint8 or floating point"),
    ],
)
def test_npz_files_of_another_kind_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / "a.npz")


def test_what_holds_no_images_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no images \(.bmp"):
        open_images(tmp_path)
    for name in ("missing", "a.txt"):
        with pytest.raises(UserError, match=f"{name}: no folder of images and no .npz file"):
            open_images(tmp_path / name)
    with pytest.raises(UserError, match=r"missing.npz: no such file"):
        open_images(tmp_path / "missing.npz")
    with pytest.raises(UserError, match=r"array must be uint8 \(n, 1 or 3, h, w\), not float64"):
        from_array(np.zeros((2, 3, 4, 4)))


def test_captions_come_by_line_or_by_name(tmp_path):
    (tmp_path / "captions.txt").write_text("a dog\nein\u2028Käse\n", encoding="utf-8")
    assert read_captions(tmp_path / "captions.txt", NAMES) == ["a dog", "ein\u2028Käse"]
    (tmp_path / "captions.json").write_text(json.dumps({"b/c.png": "two", "a.png": "one", "more.png": "three"}))
    assert read_captions(tmp_path / "captions.json", NAMES) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.txt", b"one\n", "1 lines for 2 images; give one caption a line"),
        ("captions.txt", b"\xff\xfe\n", "not UTF-8 text"),
        ("captions.json", b'{"a.png": "one"}', "no caption for the image 'b/c.png'; add it"),
        ("captions.json", b"{", "not UTF-8 text, or not JSON"),
        ("captions.json", b'["one", "two"]', "must be a JSON object from image names to captions"),
        ("captions.json", b'{"a.png": 1, "b/c.png": "two"}', "must be a JSON object from image names to captions"),
    ],
)
def test_wrong_caption_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_captions(tmp_path / name, NAMES)
    with pytest.raises(UserError, match="captions cannot be read"):
        read_captions(tmp_path / f"missing-{name}", NAMES)
