"""WebDataset's shards: tar files where the files of one sample share their name up to the first dot.

A sample has an image (.jpg, .png, ...) and a caption, in .txt or in .json.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from harness.datasets import ImageSet, Split, split_rows
from harness.datasets.files import caption_from, located, read_square
from harness.datasets.folder import SUFFIXES
from harness.errors import UserError

Sample = dict[str, bytes]
"""Suffix, in lower case -> content."""


def load(split: Split, path: str, size: int, heldout: float, caption_key: str) -> ImageSet:
    """Load `split` as uint8 images (n, 3, size, size) with captions, in shuffled order, of one file or of a folder.

    Where a sample has both, its .txt is taken before its .json. Raises UserError for missing files, for samples
    without an image or a caption, or with two images, and for what is damaged.
    """
    place = located(path)
    shards = sorted(place.glob("*.tar")) if place.is_dir() else [place]
    if not shards:
        raise UserError(f"{place}: holds no .tar files; correct data.path in the profile")
    images, captions = [], []
    with tqdm(desc=f"{path} {split}", unit="image", mininterval=1) as bar:
        for shard in shards:
            for key, sample in _samples(shard):
                captions.append(_caption(sample, caption_key, f"{shard}: {key}"))
                images.append(_image(sample, size, f"{shard}: {key}"))
                bar.update()
    if not images:
        raise UserError(f"{place}: holds no samples; correct data.path in the profile")
    labels = np.zeros(len(images), np.int64)
    rows = split_rows(labels, split, heldout)
    chosen = np.array(captions, np.dtypes.StringDType())[rows]
    return ImageSet("webdataset", split, np.stack([images[row] for row in rows]), labels[rows], 1, chosen)


def _samples(shard: Path) -> Iterator[tuple[str, Sample]]:
    """The samples in their order; the files of one follow each other, as WebDataset asks for."""
    seen: set[str] = set()
    current: str | None = None
    sample: Sample = {}
    try:
        with tarfile.open(shard, "r|*") as members:
            for member in members:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                stem, _, suffix = name.name.partition(".")
                key = str(name.with_name(stem))
                if key != current:
                    if current is not None:
                        yield current, sample
                    if key in seen:
                        raise UserError(f"{shard}: the files of {key} are not side by side; sort the shard by name")
                    seen.add(key)
                    current, sample = key, {}
                content = members.extractfile(member)
                sample["." + suffix.lower()] = content.read() if content else b""
            if current is not None:
                yield current, sample
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{shard}: not a tar file, or damaged ({error})") from None


def _image(sample: Sample, size: int, name: str) -> np.ndarray:
    found = [suffix for suffix in sample if suffix in SUFFIXES]
    if len(found) != 1:
        raise UserError(f"{name}: should have one image ({', '.join(sorted(SUFFIXES))}), not {len(found)}")
    return read_square(io.BytesIO(sample[found[0]]), size, name + found[0])


def _caption(sample: Sample, key: str, name: str) -> str:
    try:
        if ".txt" in sample:
            return caption_from(sample[".txt"].decode(), f"{name}.txt")
        if ".json" in sample:
            content = json.loads(sample[".json"])
            if not isinstance(content, dict) or key not in content:
                raise UserError(f"{name}.json: no key {key!r}; name the one of the caption in data.caption_key")
            return caption_from(content[key], f"{name}.json")
    except ValueError as error:
        raise UserError(f"{name}: its caption cannot be read ({error})") from None
    raise UserError(f"{name}: has no caption; add a .txt or .json file of that name to the shard")
