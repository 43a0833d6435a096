"""Captioned data sets as others lay them out -> Record."""

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from shards.format import key_of


@dataclass(frozen=True)
class Record:
    """One image of a source with all its captions, nothing checked but the types."""

    image_id: int | str
    file_name: str
    captions: tuple[str, ...]

    @property
    def key(self) -> str:
        """Sample key in the tar."""
        return key_of(self.image_id)


def read_coco(annotations: Path) -> list[Record]:
    """Read a COCO caption file: every image in it, sorted by id, its captions by annotation id.

    Raises:
        ValueError: the file is missing, is not JSON, or is not a COCO caption file; the message
            names the first entry at fault.
    """
    dataset = _load_coco_json(annotations)
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


def _load_coco_json(path: Path) -> dict[str, Any]:
    try:
        dataset = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such annotation file") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(dataset, dict):
        raise ValueError(f"{path}: not a COCO caption file (no JSON object at the top)")
    _check_entries(path, dataset, "images", {"id": int, "file_name": str})
    _check_entries(path, dataset, "annotations", {"id": int, "image_id": int, "caption": str})
    if not dataset["images"]:
        raise ValueError(f"{path}: lists no image")
    image_ids = [image["id"] for image in dataset["images"]]
    known = set(image_ids)
    if len(known) != len(image_ids):
        raise ValueError(f"{path}: an image id stands more than once in `images`")
    for position, entry in enumerate(dataset["annotations"]):
        if entry["image_id"] not in known:
            raise ValueError(
                f"{path}: annotations[{position}] is of image {entry['image_id']}, "
                "which `images` does not list"
            )
    return dataset


def _check_entries(path: Path, dataset: dict[str, Any], part: str, kinds: dict[str, type]) -> None:
    entries = dataset.get(part)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: not a COCO caption file (no list `{part}`)")
    for position, entry in enumerate(entries):
        for name, kind in kinds.items():
            if not isinstance(entry, dict) or type(entry.get(name)) is not kind:
                raise ValueError(f"{path}: {part}[{position}] has no {kind.__name__} `{name}`")
            if kind is int and name == "id" and entry[name] < 0:
                raise ValueError(f"{path}: {part}[{position}] has a negative `id`")


def is_utf8(text: str) -> bool:
    """Whether text can be written as UTF-8: JSON may hold half an emoji (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def source_sha256(annotations: Path) -> str:
    """Digest of the annotation file: which source a data set was made of."""
    with open(annotations, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
