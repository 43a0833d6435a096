"""Dividing an annotation file into train, val and test files of the same format.

The side of an image is a pure function of its name or id, the seed and the shares. So all rows of
an image go to one side, and images stay where they are when others are added.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.atomic import write_atomic
from shards.messages import counted
from shards.retry import persistently
from shards.sources.annotation_json import entries_of, read_object
from shards.sources.coco import check_coco
from shards.sources.karpathy import is_karpathy, record_of
from shards.sources.table import is_table, read_rows
from shards.storage import make_folder, read_bytes

SIDES = ("train", "val", "test")


@dataclass(frozen=True)
class Shares:
    """The shares of the sides; the images of neither val nor test are for training."""

    val: float  # share of the images, 0 to 1
    test: float
    seed: int

    def __post_init__(self) -> None:
        if self.val + self.test >= 1:
            raise ValueError(
                f"--val {self.val:g} and --test {self.test:g} leave no image for train"
            )
        if self.val == self.test == 0:
            raise ValueError("--val and --test are both 0: there is nothing to divide")

    def side_of(self, image: int | str) -> str:
        """The side of an image, given by its id or file name.

        The val side grows from the lower end of the hashes and the test side from the upper end, so
        changing one share moves no image into or out of the other side.
        """
        text = f"{self.seed}/{image}".encode(errors="surrogatepass")
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        place = number / 2**64
        if place < self.val:
            return "val"
        return "test" if place >= 1 - self.test else "train"

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that get images."""
        return tuple(side for side in SIDES if side == "train" or getattr(self, side) > 0)


@dataclass(frozen=True)
class Part:
    """The new file of one side, with its counts."""

    data: bytes
    num_images: int
    num_captions: int  # rows of a table, captions of the other formats


def deal(path: Path, image_column: str, shares: Shares) -> dict[str, Part]:
    """Divide an annotation file, without writing anything.

    Args:
        image_column: of tables, the column or key that holds the file names of the images.
    Returns:
        For each side the new file. Rows and entries keep their order.
    Raises:
        ValueError: the file is missing or malformed, or a side gets no image.
    """
    if is_table(path):
        parts = _deal_table(path, image_column, shares)
    else:
        dataset = read_object(path)
        parts = (_deal_karpathy if is_karpathy(dataset) else _deal_coco)(path, dataset, shares)
    for side, part in parts.items():
        if part.num_images == 0:
            raise ValueError(
                f"{path}: no image is in the split {side!r}; raise its share or take another --seed"
            )
    return parts


def _deal_table(path: Path, image_column: str, shares: Shares) -> dict[str, Part]:
    header, rows = read_rows(path, image_column, ())
    texts: dict[str, list[str]] = {side: [header] for side in shares.sides}
    images: dict[str, set[str]] = {side: set() for side in shares.sides}
    for row in rows:
        side = shares.side_of(row.file_name)
        # The last row of a file may lack a line end, and other rows may follow it in the new file.
        texts[side].append(row.text if row.text.endswith(("\n", "\r")) else row.text + "\n")
        images[side].add(row.file_name)
    return {
        side: Part("".join(text).encode(), len(images[side]), len(text) - 1)
        for side, text in texts.items()
    }


def _deal_coco(path: Path, dataset: dict[str, Any], shares: Shares) -> dict[str, Part]:
    check_coco(path, dataset)
    side_of = {image["id"]: shares.side_of(image["id"]) for image in dataset["images"]}
    parts = {}
    for side in shares.sides:
        images = [image for image in dataset["images"] if side_of[image["id"]] == side]
        captions = [e for e in dataset["annotations"] if side_of[e["image_id"]] == side]
        value = {**dataset, "images": images, "annotations": captions}
        parts[side] = Part(_json(value), len(images), len(captions))
    return parts


def _deal_karpathy(path: Path, dataset: dict[str, Any], shares: Shares) -> dict[str, Part]:
    images: dict[str, list[dict[str, Any]]] = {side: [] for side in shares.sides}
    num_captions = dict.fromkeys(shares.sides, 0)
    for number, image in enumerate(entries_of(path, dataset, "images")):
        record = record_of(path, f"images[{number}]", image)
        side = shares.side_of(record.image_id)
        images[side].append({**image, "split": side})
        num_captions[side] += len(record.captions)
    return {
        side: Part(_json({**dataset, "images": dealt}), len(dealt), num_captions[side])
        for side, dealt in images.items()
    }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def write_parts(source: Path, out_dir: Path, parts: dict[str, Part], overwrite: bool) -> None:
    """Write each side's file, `train.csv` and so on, each whole or not at all.

    Args:
        overwrite: replace files that have other contents; else they are an error.
    Raises:
        ValueError: a file would be replaced, which includes the source, or is left of a side that
            gets no image now. No file is written in these cases.
    """
    suffix = source.suffix.lower()
    for side in SIDES:
        path = out_dir / f"{side}{suffix}"
        if path.resolve() == source.resolve():
            raise ValueError(f"{path}: is the file to be divided; choose another --out")
        if not persistently(path, path.exists):
            continue
        if side not in parts:
            raise ValueError(f"{path}: is left from another split, and --{side} is 0; remove it")
        if not overwrite and read_bytes(path) != parts[side].data:
            raise ValueError(
                f"{path}: exists with other contents; choose another --out, or replace it with "
                "--overwrite"
            )
    make_folder(out_dir)
    for side, part in parts.items():
        write_atomic(out_dir / f"{side}{suffix}", part.data)


def part_line(path: Path, side: str, part: Part) -> str:
    """One side as a line for people."""
    noun = "row" if is_table(path) else "caption"
    return f"  {side}: {counted(part.num_images, 'image')}, {counted(part.num_captions, noun)}"
