"""COCO caption files of 2014 and 2017, and all files of the same form."""

import contextlib
import io
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from shards.sources.annotation_json import entries_of, field_of
from shards.sources.record import Record


def read_coco(path: Path, dataset: dict[str, Any]) -> list[Record]:
    """Every image of a COCO caption file, sorted by id, with its captions by annotation id.

    Args:
        path: names the file in errors.
        dataset: its parsed contents.
    Raises:
        ValueError: it is not a COCO caption file; the message names the first wrong entry.
    """
    check_coco(path, dataset)
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco.createIndex()
    records = []
    for image in coco.loadImgs(sorted(coco.getImgIds())):
        captions = coco.loadAnns(sorted(coco.getAnnIds(imgIds=[image["id"]])))
        records.append(
            Record(image["id"], image["file_name"], tuple(entry["caption"] for entry in captions))
        )
    return records


def check_coco(path: Path, dataset: dict[str, Any]) -> None:
    """Check that a parsed file is a COCO caption file.

    Raises:
        ValueError: it is not; the message names the first wrong entry.
    """
    known: set[int] = set()
    for position, image in enumerate(entries_of(path, dataset, "images")):
        where = f"images[{position}]"
        image_id = field_of(path, where, image, "id", int)
        field_of(path, where, image, "file_name", str)
        if image_id in known:
            raise ValueError(f"{path}: {where}: image id {image_id} occurs more than once")
        known.add(image_id)
    if not known:
        raise ValueError(f"{path}: lists no image")
    captions: set[int] = set()
    for position, entry in enumerate(entries_of(path, dataset, "annotations")):
        where = f"annotations[{position}]"
        caption_id = field_of(path, where, entry, "id", int)
        field_of(path, where, entry, "caption", str)
        if caption_id in captions:  # pycocotools would keep only the later one, and twice
            raise ValueError(f"{path}: {where}: annotation id {caption_id} occurs more than once")
        captions.add(caption_id)
        if field_of(path, where, entry, "image_id", int) not in known:
            raise ValueError(
                f"{path}: {where} belongs to image {entry['image_id']}, which `images` does not "
                "list"
            )
