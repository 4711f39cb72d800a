"""Captioned sets of the user's own files: each image keeps its caption, and each mistake is one line."""

import csv
import inspect
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from harness.datasets import LOADERS, ImageSet, load_dataset
from harness.datasets.config import DataConfig
from harness.datasets.shapes import SCENES
from harness.errors import UserError
from harness.validation import StrictModel
from harness.verbs import data as data_verb
from harness.workspace import Workspace
from tests.profiles import write_profile

COUNT = 20


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, "png")
    return buffer.getvalue()


def caption(number: int) -> str:
    return f'picture {number}, "quoted", naïve\u2028and of two lines'


def load(name: str, path: Path, split: Any = "all", **options: Any) -> ImageSet:
    return load_dataset(name, split, path=str(path), size=8, heldout=0.25, **options)


def check(name: str, path: Path, **options: Any) -> None:
    """All images are there with their own captions, split in shuffled order; the same files give the same set."""
    known = {picture(i).transpose(2, 0, 1).tobytes(): caption(i) for i in range(COUNT)}
    whole = load(name, path, **options)
    assert [known[image.tobytes()] for image in whole.images] == whole.captions.tolist()
    assert len(set(whole.captions.tolist())) == COUNT
    assert whole.num_classes == 1
    train, heldout = (load(name, path, split, **options) for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (15, 5)
    np.testing.assert_array_equal(np.concatenate([train.captions, heldout.captions]), whole.captions)
    np.testing.assert_array_equal(np.concatenate([train.images, heldout.images]), whole.images)
    assert load(name, path, "train", **options).digest == train.digest


def fails(message: str, name: str, path: Path, **options: Any) -> None:
    with pytest.raises(UserError) as error:
        load(name, path, "train", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


FOLDER = {"caption_column": "text"}


def write_images(folder: Path) -> None:
    for i in range(COUNT):
        (folder / f"{i % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"{i % 3}" / f"{i:02}.png").write_bytes(png(i))


def test_text_files_beside_the_images(tmp_path: Path) -> None:
    write_images(tmp_path)
    for i in range(COUNT):
        (tmp_path / f"{i % 3}" / f"{i:02}.txt").write_text(f"  {caption(i)}\n", encoding="utf-8")
    check("captioned-folder", tmp_path, **FOLDER)
    text = tmp_path / "2" / "05.txt"
    text.write_text(" \n")
    fails("05.txt: its caption is empty", "captioned-folder", tmp_path, **FOLDER)
    text.write_bytes(b"\xff\xfe\xfa")
    fails("05.txt: cannot be read as UTF-8 text", "captioned-folder", tmp_path, **FOLDER)
    text.unlink()
    fails("05.png: has no caption; write it into 05.txt beside it", "captioned-folder", tmp_path, **FOLDER)


def write_table(folder: Path, suffix: str, rows: Sequence[Mapping[str, Any]]) -> None:
    with open(folder / f"metadata.{suffix}", "w", encoding="utf-8", newline="") as file:
        if suffix == "csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_one_table_of_all_captions(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path)
    rows = [{"file_name": f"{i % 3}/{i:02}.png", "text": caption(i), "other": i} for i in range(COUNT)]
    write_table(tmp_path, suffix, rows)
    check("captioned-folder", tmp_path, **FOLDER)
    table = f"metadata.{suffix}:{3 if suffix == 'csv' else 2}"
    options = {"caption_column": "caption"}
    fails("no 'caption'; it has: file_name, text, other", "captioned-folder", tmp_path, **options)
    write_table(tmp_path, suffix, [rows[0], {**rows[1], "file_name": "1/99.png"}])
    fails(f"{table}: no such file as", "captioned-folder", tmp_path, **FOLDER)
    write_table(tmp_path, suffix, [rows[0], {**rows[1], "text": ""}])
    fails(f"{table}: its caption is empty", "captioned-folder", tmp_path, **FOLDER)
    write_table(tmp_path, "csv" if suffix == "jsonl" else "jsonl", rows)
    fails("holds both metadata.csv and metadata.jsonl", "captioned-folder", tmp_path, **FOLDER)


def test_mistakes_with_captioned_folders(tmp_path: Path) -> None:
    fails("holds no images with captions", "captioned-folder", tmp_path, **FOLDER)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", \n')
    fails("metadata.jsonl:1: not valid JSON", "captioned-folder", tmp_path, **FOLDER)
    (tmp_path / "metadata.jsonl").write_text("\n[]\n")
    fails("metadata.jsonl:2: holds list, but should hold an object", "captioned-folder", tmp_path, **FOLDER)
    fails("not a folder", "captioned-folder", tmp_path / "metadata.jsonl", **FOLDER)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"open\n')
    fails("not valid CSV", "captioned-folder", tmp_path, **FOLDER)


PARQUET = {"image_column": "img", "label_column": "label", "caption_column": "text"}


def test_parquet_with_captions(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for first, last in ((0, 7), (7, COUNT)):
        table = pa.table(
            {"img": [png(i) for i in range(first, last)], "text": [caption(i) for i in range(first, last)]}
        )
        parquet.write_table(table, tmp_path / f"{first:02}.parquet")
    check("parquet", tmp_path, **PARQUET)
    fails("no column 'caption'; it has: img, text", "parquet", tmp_path, **{**PARQUET, "caption_column": "caption"})
    for wrong, message in (([" "] * 3, "is empty"), ([1] * 3, "is no text: 1"), ([None] * 3, "is no text: None")):
        parquet.write_table(pa.table({"img": [png(i) for i in range(3)], "text": wrong}), tmp_path / "07.parquet")
        fails(f"07.parquet: row 0, 'text': its caption {message}", "parquet", tmp_path, **PARQUET)


SHARDS = {"caption_key": "caption"}


def write_shard(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as shard:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["txt", "json", "both"])
def test_webdataset_shards(tmp_path: Path, kind: str) -> None:
    for first, last in ((0, 7), (7, COUNT)):
        files: dict[str, bytes] = {"__MACOSX/._junk": b""} if first else {}
        for i in range(first, last):
            files[f"part.0/{i:04}.PNG"] = png(i)
            if kind != "txt":
                said = "something else" if kind == "both" else caption(i)
                files[f"part.0/{i:04}.json"] = json.dumps({"caption": said, "url": "none"}).encode()
            if kind != "json":
                files[f"part.0/{i:04}.txt"] = caption(i).encode()
        write_shard(tmp_path / f"{first:06}.tar", files)
    check("webdataset", tmp_path, **SHARDS)


def test_mistakes_with_shards(tmp_path: Path) -> None:
    fails("holds no .tar files", "webdataset", tmp_path, **SHARDS)
    shard = tmp_path / "0.tar"

    def refused(message: str, files: Mapping[str, bytes], **options: Any) -> None:
        write_shard(shard, files)
        fails(message, "webdataset", shard, **{**SHARDS, **options})

    refused("holds no samples", {})
    refused("0.tar: a: has no caption", {"a.png": png(0), "b.txt": b"b"})
    refused("0.tar: a: should have one image (.bmp, ", {"a.txt": b"a"})
    refused("not 2", {"a.txt": b"a", "a.png": png(0), "a.webp": png(0)})
    refused("0.tar: a.txt: its caption is empty", {"a.txt": b" ", "a.png": png(0)})
    refused("0.tar: a: its caption cannot be read", {"a.txt": b"\xff", "a.png": png(0)})
    refused("0.tar: a: its caption cannot be read", {"a.json": b"{", "a.png": png(0)})
    refused("0.tar: a.json: no key 'text'", {"a.json": b'{"caption": "x"}', "a.png": png(0)}, caption_key="text")
    refused("0.tar: a.json: its caption is no text: 3", {"a.json": b'{"caption": 3}', "a.png": png(0)})
    refused("0.tar: a.png: cannot be read as an image", {"a.txt": b"a", "a.png": png(0)[:50]})
    refused(
        "the files of a are not side by side",
        {"a.png": png(0), "a.txt": b"a", "b.png": png(1), "b.txt": b"b"} | {"a.json": b"{}"},
    )
    write_shard(shard, {f"{i}.png": png(i) for i in range(9)} | {"0.txt": b"x"})
    shard.write_bytes(shard.read_bytes()[:700])
    fails("0.tar: not a tar file, or damaged", "webdataset", shard, **SHARDS)
    shard.write_bytes(b"no tar file")
    fails("0.tar: not a tar file, or damaged", "webdataset", shard, **SHARDS)


def coco(count: int) -> dict[str, Any]:
    """COCO's captions of `count` images, two each, in no order, and an image without any."""
    notes = [{"id": 10 + i, "image_id": 1000 - i, "caption": caption(i) + "\n"} for i in range(count)]
    notes += [{"id": 500 + i, "image_id": 1000 - i, "caption": "a later one"} for i in range(count)]
    order = np.random.default_rng(0).permutation(len(notes))
    images = [{"id": 1000 - i, "file_name": f"{i:012}.png", "height": 8, "width": 8} for i in range(count + 1)]
    return {"images": images, "annotations": [notes[i] for i in order], "info": {}}


def test_coco_gives_each_image_its_first_caption(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    for i in range(COUNT):
        (tmp_path / "val" / f"{i:012}.png").write_bytes(png(i))
    table = tmp_path / "captions.json"
    table.write_text(json.dumps(coco(COUNT)))
    check("coco", tmp_path / "val", annotations=str(table))
    (tmp_path / "val" / f"{3:012}.png").unlink()
    fails("captions.json: names 000000000003.png, which is not in", "coco", tmp_path / "val", annotations=str(table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": []}, "captions.json: holds no captions"),
        ({"annotations": [{"id": 1, "image_id": 1, "bbox": []}]}, "captions.json: no 'caption'"),
        ({"annotations": [{"id": 1, "image_id": 1, "caption": ""}]}, "captions.json: annotation 1: its caption is"),
        ({"annotations": [{"id": 1, "image_id": 1, "caption": "x"}]}, "captions.json: no 1; it is not one of COCO's"),
        ({"images": 3}, "captions.json: cannot be read as COCO's captions"),
    ],
)
def test_mistakes_with_coco(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    table = tmp_path / "captions.json"
    table.write_text(json.dumps(coco(3) | change))
    fails(message, "coco", tmp_path, annotations=str(table))
    table.write_text("{")
    fails("captions.json: cannot be read as COCO's captions", "coco", tmp_path, annotations=str(table))
    fails("none.json: no such file or folder", "coco", tmp_path, annotations=str(tmp_path / "none.json"))


@pytest.mark.parametrize("config", get_args(DataConfig))
def test_the_fields_of_a_profile_are_the_options_of_the_loader(config: type[StrictModel]) -> None:
    name = config.model_fields["name"].default
    options = [
        option for option in inspect.signature(import_module(LOADERS[name]).load).parameters if option != "split"
    ]
    assert {*options, "name"} == set(config.model_fields)


def test_the_shapes_are_written_with_their_captions(tmp_path: Path) -> None:
    workspace = Workspace(write_profile(tmp_path / "mine.yaml", {"data": {"name": "shapes"}}), tmp_path)
    data_verb.run(workspace)
    train = ImageSet.load(workspace.data("train"))
    assert (len(train), train.images.shape[1:], train.num_classes) == (20_000, (3, 16, 16), 12_240)
    assert all(
        "circle" in caption or "disc" in caption for caption in train.captions[SCENES["shape"][train.labels] == 0]
    )
