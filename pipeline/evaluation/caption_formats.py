"""Captions as lines on stdout, .txt files beside the images, COCO JSON, CSV and JSON Lines."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from pipeline.evaluation.image_files import ImageList
from pipeline.generation.blocks import ScoredCaption
from pipeline.runtime.world import World
from shards.messages import counted

_COCO_NAME = re.compile(r"COCO_(?:train|val|test)\d{4}_(\d{12})", re.ASCII)
_MAX_ID_DIGITS = 18  # of a number that fits 64 bits


class ImageCaptions(NamedTuple):
    """What is written for one image."""

    path: str
    caption: str  # the best one
    captions: tuple[ScoredCaption, ...] = ()  # all, the best first, if several were asked for


class Destination(Protocol):
    """Where captions go."""

    @property
    def earlier(self) -> tuple[str, int] | None:
        """What an earlier run finished, and how many images it could not read.

        None if there is something left to do.
        """

    def open(self, world: World, wait_for_all: Callable[[], object]) -> None:
        """Begin to write, on all ranks."""

    def captioned(self, paths: Sequence[str]) -> list[bool]:
        """Which of the images have a caption there already."""

    def write(self, captions: Sequence[ImageCaptions]) -> None:
        """Add the captions of one batch."""

    def finish(self, num_unreadable: int) -> str:
        """Complete the output on the main process, once all ranks have written all captions.

        Returns:
            What was written, for people.
        """

    def first(self, count: int) -> list[tuple[str, str]]:
        """The first captions of the finished output, at most `count`: path, caption.

        An output that an earlier run finished has them too.
        """


class PrintedLines:
    """Lines on stdout, as the captions come; for one process."""

    earlier = None

    def __init__(self, as_json: bool, keep: int) -> None:
        self._as_json = as_json
        self._keep = keep
        self._first: list[tuple[str, str]] = []
        self._count = 0

    def open(self, world: World, wait_for_all: Callable[[], object]) -> None:
        """Nothing to open."""

    def captioned(self, paths: Sequence[str]) -> list[bool]:
        """None: what was printed is not known."""
        return [False] * len(paths)

    def write(self, captions: Sequence[ImageCaptions]) -> None:
        """Print a batch: a line an image as JSON, otherwise a line a caption."""
        for path, caption, scored in captions:
            if self._as_json:
                print(json_line(path, caption, scored))
            else:
                texts = [text for text, _ in scored] or [caption]
                print(*(f"{path}: {text}" for text in texts), sep="\n")
        print(end="", flush=True)
        self._count += len(captions)
        kept = captions[: self._keep - len(self._first)]
        self._first += [(path, caption) for path, caption, _ in kept]

    def finish(self, num_unreadable: int) -> str:
        """All is printed already."""
        return f"{counted(self._count, 'image')} captioned"

    def first(self, count: int) -> list[tuple[str, str]]:
        """At most `keep` of them."""
        return self._first[:count]


class TextFiles:
    """NAME.txt beside each image. One that exists already is never overwritten."""

    earlier = None

    def __init__(self, images: ImageList) -> None:
        self._images = images

    def open(self, world: World, wait_for_all: Callable[[], object]) -> None:
        """Nothing to open."""

    def captioned(self, paths: Sequence[str]) -> list[bool]:
        """Those with a NAME.txt."""
        return [text_path(path).exists() for path in paths]

    def write(self, captions: Sequence[ImageCaptions]) -> None:
        """Write each file under a temporary name first, so that a kill leaves none cut short."""
        for path, caption, _ in captions:
            final = text_path(path)
            temporary = final.with_name(f".{final.name}.tmp")
            temporary.write_text(caption + "\n", encoding="utf-8")
            os.replace(temporary, final)

    def finish(self, num_unreadable: int) -> str:
        """All is written already."""
        return f"captions of {counted(len(self._images) - num_unreadable, 'image')} in .txt files"

    def first(self, count: int) -> list[tuple[str, str]]:
        """Read back, those included that were there before."""
        paths = (path for path in self._images if text_path(path).exists())
        return [(p, text_path(p).read_text("utf-8", "replace")) for p in islice(paths, count)]


def text_path(path: str) -> Path:
    """NAME.txt beside an image."""
    return Path(path).with_suffix(".txt")


def image_id(path: str) -> int | str:
    """The COCO id of an image, or its path.

    The id is the number that is the file name (000000000139.jpg), or that ends a name of the
    releases of 2014 and 2015 (COCO_val2014_000000000139.jpg).
    """
    stem = Path(path).stem
    if named := _COCO_NAME.fullmatch(stem):
        stem = named[1]
    is_number = stem.isascii() and stem.isdigit() and len(stem) <= _MAX_ID_DIGITS
    return int(stem) if is_number else path


def write_rows(file: BinaryIO, suffix: str, rows: Iterable[ImageCaptions]) -> None:
    """Write captions in a format, one at a time.

    Args:
        suffix: names the format: `.json`, `.csv` or `.jsonl`.
        rows: an image each. Only `.jsonl` has more than the best caption.
    """
    if suffix == ".csv":
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("image", "caption"))
        writer.writerows((path, caption) for path, caption, _ in rows)
        text.flush()
        text.detach()
    elif suffix == ".jsonl":
        file.writelines(json_line(*row).encode() + b"\n" for row in rows)
    else:
        results = (json.dumps({"image_id": image_id(p), "caption": c}).encode() for p, c, _ in rows)
        file.write(b"[")
        for number, result in enumerate(results):
            file.write((b",\n" if number else b"\n") + result)
        file.write(b"\n]\n")


def json_line(path: str, caption: str, captions: Sequence[ScoredCaption] = ()) -> str:
    """One row of JSON Lines."""
    row: dict[str, Any] = {"image": path, "caption": caption}
    if captions:
        row["captions"] = [{"caption": c.text, "score": round(c.score, 6)} for c in captions]
    return json.dumps(row)
