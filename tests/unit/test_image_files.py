"""Sets of image files: what is read, cropped and split is what lies there, and each mistake is one line."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from harness.addresses import TEACHER, RunAddress
from harness.checkpoint import load_checkpoint
from harness.config import load_profile
from harness.datasets import ImageSet, load_dataset, split_rows, unit_range
from harness.datasets.files import read_square
from harness.errors import UserError
from harness.metrics.images import from_uint8
from harness.noise import Noise
from harness.training import BatchStream
from harness.verbs import data as data_verb
from harness.verbs import teacher
from harness.workspace import Workspace
from tests.profiles import CONTENT, write_profile

COUNTS = {"ant": 10, "bee": 20, "cat": 30}
CIFAR = Path(os.environ.get("FEWSTEP_TEST_CIFAR", Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg"))


def picture(number: int, height: int = 8, width: int = 8) -> np.ndarray:
    """A random image (height, width, 3)."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """A folder with three classes of 8x8 images, written in no order; image i of all is `picture(i)`."""
    folder = tmp_path / "animals"
    files = [f"{name}/{i:02}.png" for name, count in COUNTS.items() for i in range(count)]
    for number in np.random.default_rng(0).permutation(len(files)):
        file = folder / files[number]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(picture(number)))
    (folder / "ant" / "notes.txt").write_text("no image")
    (folder / ".cache").mkdir()
    return folder


def load_animals(animals: Path, split: Any, heldout: float = 0.2) -> ImageSet:
    return load_dataset("folder", split, path=str(animals), size=8, heldout=heldout)


def numbers_of(images: ImageSet) -> list[int]:
    """Which pictures these are."""
    known = {picture(i).transpose(2, 0, 1).tobytes(): i for i in range(sum(COUNTS.values()))}
    return [known[image.tobytes()] for image in images.images]


def test_images_of_the_right_size_are_read_pixel_by_pixel_with_their_class(animals: Path) -> None:
    images = load_animals(animals, "all")
    assert images.images.dtype == np.uint8
    numbers = numbers_of(images)
    assert sorted(numbers) == list(range(60))
    assert images.labels.tolist() == [0 if i < 10 else 1 if i < 30 else 2 for i in numbers]
    assert images.num_classes == 3


def test_the_split_takes_its_share_of_every_class_and_is_always_the_same(animals: Path) -> None:
    train, heldout, whole = (load_animals(animals, split) for split in ("train", "heldout", "all"))
    assert np.bincount(heldout.labels).tolist() == [2, 4, 6]
    np.testing.assert_array_equal(np.concatenate([train.images, heldout.images]), whole.images)
    np.testing.assert_array_equal(np.concatenate([train.labels, heldout.labels]), whole.labels)
    assert load_animals(animals, "train").digest == train.digest
    assert np.any(np.diff(train.labels) < 0)  # shuffled


def test_split_rows_pass_over_classes_that_do_not_occur() -> None:
    labels = np.array([5, 0, 5, 0, 5, 5, 0, 0])
    train, heldout = (split_rows(labels, split, 0.25) for split in ("train", "heldout"))
    assert sorted(labels[heldout]) == [0, 5]
    assert sorted([*train, *heldout]) == list(range(8))


def test_a_folder_without_sub_folders_is_one_class(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}.PNG").write_bytes(png(picture(i)))
    images = load_dataset("folder", "heldout", path=str(tmp_path), size=8, heldout=0.3)
    assert images.images.shape == (3, 3, 8, 8)
    assert images.num_classes == 1
    assert not images.labels.any()


@pytest.mark.parametrize(("height", "width", "top", "left"), [(8, 13, 0, 2), (13, 8, 2, 0), (8, 8, 0, 0)])
def test_the_central_square_is_kept(height: int, width: int, top: int, left: int) -> None:
    pixels = picture(1, height, width)
    square = read_square(io.BytesIO(png(pixels)), 8, "it")
    np.testing.assert_array_equal(square, pixels[top : top + 8, left : left + 8].transpose(2, 0, 1))


def test_resizing_is_pillows_lanczos_of_the_square_alone() -> None:
    pixels = picture(2, 40, 64)
    square = read_square(io.BytesIO(png(pixels)), 10, "it")
    expected = Image.fromarray(pixels[:, 12:52]).resize((10, 10), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(square, np.asarray(expected).transpose(2, 0, 1))
    # an antialiased image keeps the mean of every quarter; a subsampled one, of noise, does not
    assert np.abs(square.mean() - pixels[:, 12:52].mean()) < 2


def test_grey_images_and_palettes_become_rgb() -> None:
    grey = picture(3)[:, :, 0]
    np.testing.assert_array_equal(read_square(io.BytesIO(png(grey)), 8, "it"), np.stack([grey] * 3))
    buffer = io.BytesIO()
    flat = Image.new("RGB", (8, 8), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    flat.save(buffer, "png")
    assert read_square(buffer, 8, "it")[:, 4, 4].tolist() == [10, 20, 30]


def write_parquet(file: Path, pictures: range, labels: list[Any], nested: bool) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    contents: list[Any] = [png(picture(i)) for i in pictures]
    images = [{"bytes": content, "path": None} for content in contents] if nested else contents
    parquet.write_table(pa.table({"img": images, "label": labels}), file, row_group_size=7)


def load_parquet(path: Path, split: Any = "all", **options: Any) -> ImageSet:
    columns = {"image_column": "img", "label_column": "label", **options}
    return load_dataset("parquet", split, path=str(path), size=8, heldout=0.2, **columns)


@pytest.mark.parametrize("nested", [True, False], ids=["structures", "bytes"])
@pytest.mark.parametrize("split", ["train", "heldout", "all"])
def test_parquet_holds_what_the_folder_holds(animals: Path, tmp_path: Path, nested: bool, split: Any) -> None:
    classes = [label for label, count in enumerate(COUNTS.values()) for _ in range(count)]
    (tmp_path / "tables").mkdir()
    for first, last in ((0, 25), (25, 60)):
        pictures = range(first, last)
        write_parquet(tmp_path / "tables" / f"{first:02}.parquet", pictures, classes[first:last], nested)
    assert load_parquet(tmp_path / "tables", split).digest == load_animals(animals, split).digest


def test_cifar_has_its_ten_classes_and_its_colours() -> None:
    pytest.importorskip("pyarrow")
    if not (CIFAR / "test.parquet").exists():
        pytest.skip(f"{CIFAR / 'test.parquet'} is not there; name its folder in FEWSTEP_TEST_CIFAR")
    options = {"size": 32, "heldout": 0.1, "image_column": "img", "label_column": "label"}
    images = load_dataset("parquet", "heldout", path=str(CIFAR / "test.parquet"), **options)
    assert np.bincount(images.labels).tolist() == [100] * 10
    # the means of the channels of the whole set, 0.491, 0.482 and 0.447, within four standard errors
    np.testing.assert_allclose(images.images.mean(axis=(0, 2, 3)) / 255, [0.491, 0.482, 0.447], atol=0.015)


def test_paths_start_from_the_folder_of_the_environment(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_animals(animals, "train").digest
    options = {"path": "animals", "size": 8, "heldout": 0.2}
    monkeypatch.chdir(tmp_path)
    assert load_dataset("folder", "train", **options).digest == expected
    monkeypatch.chdir("/")
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    assert load_dataset("folder", "train", **options).digest == expected
    assert load_dataset("folder", "train", **{**options, "path": str(animals)}).digest == expected


def fails(message: str, name: str, **options: Any) -> None:
    with pytest.raises(UserError) as error:
        load_dataset(name, "train", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_mistakes_with_folders(animals: Path, tmp_path: Path) -> None:
    options = {"path": str(animals), "size": 8, "heldout": 0.2}
    fails("set FEWSTEP_DATA to the folder that holds 'none'", "folder", **{**options, "path": "none"})
    fails("not a folder", "folder", **{**options, "path": str(animals / "ant" / "00.png")})
    fails("a share of 0.01 of 60 images leaves a split empty", "folder", **{**options, "heldout": 0.01})
    (tmp_path / "empty").mkdir()
    fails("empty: holds no images (.bmp, .jpeg, ", "folder", **{**options, "path": str(tmp_path / "empty")})
    (animals / "dog").mkdir()
    fails("dog: holds no images", "folder", **options)
    (animals / "dog" / "x.png").write_bytes(png(picture(0))[:60])
    fails("dog/x.png: cannot be read as an image", "folder", **{**options, "heldout": 0.4})
    (animals / "y.png").write_bytes(png(picture(0)))
    fails("holds images (y.png) beside class folders", "folder", **options)


def test_mistakes_with_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    columns = {"image_column": "img", "label_column": "label"}
    options = {"path": str(tmp_path / "a.parquet"), "size": 8, "heldout": 0.2, **columns}
    fails("holds no .parquet files", "parquet", **{**options, "path": str(tmp_path)})
    write_parquet(tmp_path / "a.parquet", range(10), [0, 1] * 5, nested=True)
    fails("no column 'image'; it has: img, label", "parquet", **{**options, "image_column": "image"})
    fails("no column 'class'; it has: img, label", "parquet", **{**options, "label_column": "class"})
    fails("a.parquet: row 1: holds no encoded image, but int", "parquet", **{**options, "image_column": "label"})
    for labels in ([-1] * 10, ["cat"] * 10, [0.5] * 10, [None, 1] * 5):
        write_parquet(tmp_path / "a.parquet", range(10), labels, nested=True)
        fails("the column 'label' must hold whole numbers from 0", "parquet", **options)
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:300])
    fails("a.parquet: not a parquet file, or damaged", "parquet", **options)


def test_a_missing_library_is_named_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "harness.datasets.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    fails("the data set 'parquet' needs pyarrow, which is not installed; pip install 'fewstep[images]'", "parquet")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "mnist"}, "data is called 'mnist'; known: digits, folder, parquet, shapes, "),
        ({"path": "x", "size": 8}, "the key data.name is missing"),
        ({"name": "folder", "size": 8}, "the key data.path is missing"),
        ({"name": "folder", "path": "x", "size": 0}, "data.size is 0, but should be greater than or equal to 1"),
        ({"name": "folder", "path": "x", "size": 8, "image_column": "img"}, "unknown key data.image_column; known: "),
        ({"name": "parquet", "path": "x", "size": 8, "image_colum": "y"}, "did you mean 'image_column'?"),
        ({"name": "folder", "path": "x", "size": 8, "heldout": 1.0}, "data.heldout is 1.0, but should be less than 1"),
        ({"name": "digits", "size": 8}, "unknown key data.size; known: name"),
    ],
)
def test_each_mistake_in_the_profile_is_one_line(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**CONTENT, "data": data}))
    with pytest.raises(UserError) as error:
        load_profile(tmp_path / "mine.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_eight_bit_images_stay_eight_bit_on_disk_and_are_mapped_not_read(animals: Path, tmp_path: Path) -> None:
    images = load_animals(animals, "train")
    images.save(tmp_path / "train.npz")
    assert (tmp_path / "train.npz").stat().st_size < images.images.nbytes + 6000
    again = ImageSet.load(tmp_path / "train.npz")
    assert isinstance(again.images.base, np.memmap)
    assert again.pixels is again.images
    assert again.digest == images.digest
    before = (tmp_path / "train.npz").read_bytes()
    again.images[0] = 0  # a copy on write
    assert (tmp_path / "train.npz").read_bytes() == before


def test_batches_of_eight_bit_images_are_floats_in_the_unit_range(animals: Path) -> None:
    images = load_animals(animals, "train")
    stream = BatchStream("data", {"images": images.images, "condition": images.labels}, Noise(0))
    batch = stream.take(0, len(images))
    assert batch["images"].dtype == np.float32
    assert batch["condition"].dtype == np.int64
    order = stream.order
    np.testing.assert_allclose(batch["images"], from_uint8(images.images[order]), atol=1e-7)
    floats = ImageSet("floats", "train", unit_range(images.images), images.labels, 3)
    np.testing.assert_array_equal(floats.pixels, images.images)


def test_a_teacher_trains_on_image_files(animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    data = {"name": "folder", "path": "animals", "size": 4}
    workspace = Workspace(write_profile(tmp_path / "mine.yaml", {"data": data}), tmp_path)
    data_verb.run(workspace)
    teacher.run(workspace, "torch", 0)
    run = workspace.run(RunAddress("torch", TEACHER, "default", TEACHER, 0))
    _, manifest = load_checkpoint(run / "teacher.safetensors")
    assert manifest["data"] == ImageSet.load(workspace.data("train")).digest
    assert (manifest["network"]["channels"], manifest["network"]["size"], manifest["network"]["num_classes"]) == (
        3,
        4,
        3,
    )
