"""COCO's captions: a JSON file of annotations, and the folder of images that it names.

An image has about five captions. The first is taken, which is the one of the lowest annotation number: one caption an
image keeps images and captions in step, and no draw has to be stated with a result.
"""

import json
from pathlib import Path
from typing import Any

from harness.datasets import ImageSet, Split
from harness.datasets.files import caption_from, located, read_captioned
from harness.errors import UserError


def load(split: Split, path: str, annotations: str, size: int, heldout: float) -> ImageSet:
    """Load `split` as uint8 images (n, 3, size, size) with their first caption, in shuffled order.

    Images without a caption are passed over. Raises UserError for missing files and images, for a file that holds no
    captions in COCO's format, and for a damaged image.
    """
    folder, table = located(path), located(annotations)
    files, captions = _first_captions(table)
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{table}: names {file}, which is not in {folder}; correct data.path or data.annotations")
    return read_captioned("coco", split, [folder / file for file in files], captions, size, heldout)


def _first_captions(table: Path) -> tuple[list[str], list[str]]:
    """File names and captions, ordered by the number of the image."""
    try:
        content: dict[str, list[dict[str, Any]]] = json.loads(table.read_text(encoding="utf-8"))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        first = {
            note["image_id"]: caption_from(note["caption"], f"{table}: annotation {note['id']}")
            for note in sorted(content["annotations"], key=lambda note: note["id"], reverse=True)
        }
        files = [names[image] for image in sorted(first)]
    except KeyError as error:
        raise UserError(f"{table}: no {error}; it is not one of COCO's files of captions") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{table}: cannot be read as COCO's captions ({error})") from None
    if not files:
        raise UserError(f"{table}: holds no captions; correct data.annotations in the profile")
    return files, [first[image] for image in sorted(first)]
