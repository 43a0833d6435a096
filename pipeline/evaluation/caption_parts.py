"""One file of captions that several processes write, and that a killed run goes on with.

    captions.json.rank0.part   captions of rank 0 so far: JSON Lines, appended batch by batch
    captions.json.rank1.part   of rank 1
    captions.json              all captions in the order of the images, once the last is there
    captions.json.run.json     checkpoint and images that `captions.json` was made of

The first line of a part file is the fingerprint of the checkpoint. A kill can cut the last line
only; it is removed before anything is appended. The next run may have another number of processes:
it reads the part files of all ranks. The part files are deleted once the output is complete.
"""

import fcntl
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.checkpoint.commit import CONFIG, FILES, MODEL, TOKENIZER
from pipeline.config.generation import GenerationConfig, used_settings
from pipeline.evaluation.caption_formats import ImageCaptions, json_line, write_rows
from pipeline.evaluation.image_files import ImageList, hash64
from pipeline.generation.blocks import ScoredCaption
from pipeline.runtime.world import World
from shards.atomic import NO_LOCKS, atomic_file, write_atomic
from shards.messages import counted


def fingerprint(checkpoints: Sequence[Path], generation: GenerationConfig) -> dict[str, Any]:
    """What captions depend on: digests of the checkpoints' files, and how they are generated."""
    digests = [json.loads((path / FILES).read_bytes()) for path in checkpoints]
    names = (MODEL, TOKENIZER, CONFIG)
    return {
        "checkpoints": [{name: found[name] for name in names} for found in digests],
        "generation": used_settings(generation),
    }


class PartFiles:
    """A destination of captions: part files that become one output file.

    Making one only reads; `open` starts the writing.

    Args:
        out: the output file; its suffix names the format.
        fingerprint: of the checkpoint.
        images: all images, in the order of the output.
        keep: how many captions `first` can give.
    Raises:
        ValueError: there is an output or a part file of another checkpoint or of other images.
    """

    def __init__(
        self, out: Path, fingerprint: dict[str, Any], images: ImageList, keep: int
    ) -> None:
        self._out = out
        self._keep = keep
        self._record_path = out.with_name(f"{out.name}.run.json")
        self._run = {**fingerprint, "images": len(images), "images_sha256": images.sha256}
        self._header = _json({"capstream_captions": 1, **fingerprint})
        self._images = images
        self._hashes = np.empty(0, np.uint64)
        self._file: BinaryIO | None = None
        self._first: list[tuple[str, str]] = []
        self.earlier = self._finished_run()
        for path in [] if self.earlier else self._part_paths():
            with open(path, "rb") as file:
                header = file.readline()
            if header.endswith(b"\n") and header != self._header:
                raise ValueError(
                    f"{path}: was written with another checkpoint or other generation settings; "
                    "delete it to begin anew, or give another --out"
                )

    def _finished_run(self) -> tuple[str, int] | None:
        if not self._out.exists():
            return None
        try:
            record = json.loads(self._record_path.read_bytes())
        except (OSError, ValueError):
            record = {}
        if self._run.items() <= record.items():
            said = (
                f"{self._out}: finished earlier, with captions of "
                f"{counted(record['captions'], 'image')}; {counted(record['unreadable'], 'image')} "
                "could not be read. No image is captioned again; delete the file to begin anew"
            )
            self._first = [(path, caption) for path, caption in record.get("first", ())]
            return said, record["unreadable"]
        if self._part_paths():  # a kill came before the record was written
            return None
        raise ValueError(
            f"{self._out}: exists already, and is not known to be of this checkpoint and these "
            f"{counted(len(self._images), 'image')}; delete it to begin anew, or give another --out"
        )

    def _part_paths(self) -> list[Path]:
        prefix = f"{self._out.name}.rank"
        names = [p for p in self._out.parent.glob("*.part") if p.name.startswith(prefix)]
        return sorted(names)

    def open(self, world: World, wait_for_all: Callable[[], object]) -> None:
        """Begin to write, on all ranks.

        Raises:
            ValueError: another run writes this output.
        """
        if world.is_main:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            for path in self._part_paths():
                with self._locked(path) as file:
                    _drop_cut_line(file)
        wait_for_all()  # nobody appends while others read or repair
        self._hashes = _Index(self._part_paths()).hashes
        wait_for_all()
        self._file = self._locked(self._out.with_name(f"{self._out.name}.rank{world.rank}.part"))
        if self._file.seek(0, os.SEEK_END) == 0:
            self._file.write(self._header)

    def _locked(self, path: Path) -> BinaryIO:
        file = open(path, "a+b")  # noqa: SIM115  # the caller keeps it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return file
            file.close()
            if isinstance(error, BlockingIOError):
                raise ValueError(f"{path}: another run is writing it; end that one first") from None
            raise
        return file

    def captioned(self, paths: Sequence[str]) -> list[bool]:
        """Those that an earlier run captioned."""
        hashes = np.array([hash64(path) for path in paths], np.uint64)
        found: list[bool] = np.isin(hashes, self._hashes).tolist()
        return found

    def write(self, captions: Sequence[ImageCaptions]) -> None:
        """Append a batch to this rank's part file."""
        assert self._file, "open() comes first"
        self._file.writelines(json_line(*row).encode() + b"\n" for row in captions)
        self._file.flush()

    def finish(self, num_unreadable: int) -> str:
        """Write the output and delete the part files."""
        index = _Index(self._part_paths())
        num_written = 0
        with atomic_file(self._out) as file:

            def rows() -> Iterator[ImageCaptions]:
                nonlocal num_written
                for path in self._images:
                    row = index.row(path)
                    if row:
                        num_written += 1
                        if len(self._first) < self._keep:
                            self._first.append((path, row.caption))
                        yield row

            write_rows(file, self._out.suffix.lower(), rows())
            if num_written + num_unreadable != len(self._images):
                raise RuntimeError(
                    f"{num_written:,} captions and {counted(num_unreadable, 'unreadable image')} "
                    f"came together, of {counted(len(self._images), 'image')}; {self._out} is not "
                    "written"
                )
        record = {
            **self._run,
            "captions": num_written,
            "unreadable": num_unreadable,
            "first": self._first,
        }
        write_atomic(self._record_path, _json(record))
        for path in self._part_paths():
            path.unlink()
        return f"{self._out}: captions of {counted(num_written, 'image')}"

    def first(self, count: int) -> list[tuple[str, str]]:
        """As they were written."""
        return self._first[:count]


class _Index:
    """Where the captions of each image lie in the part files: 20 bytes of memory an image.

    A line that is not whole JSON, as a power cut can leave one, counts as not written.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [open(path, "rb") for path in paths]  # noqa: SIM115  # read from later
        hashes, parts, offsets = array("Q"), array("I"), array("Q")
        for number, file in enumerate(self._files):
            offset = len(file.readline())  # the header
            for line in file:
                if row := _parse(line):
                    hashes.append(hash64(row[0]))
                    parts.append(number)
                    offsets.append(offset)
                offset += len(line)
        order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
        self.hashes = np.frombuffer(hashes, np.uint64)[order]
        self._parts = np.frombuffer(parts, np.uint32)[order]
        self._offsets = np.frombuffer(offsets, np.uint64)[order]

    def row(self, path: str) -> ImageCaptions | None:
        """The captions of an image, if there are any."""
        key = hash64(path)
        position = int(np.searchsorted(self.hashes, np.uint64(key)))
        while position < len(self.hashes) and int(self.hashes[position]) == key:
            file = self._files[self._parts[position]]
            file.seek(int(self._offsets[position]))
            row = _parse(file.readline())
            if row and row[0] == path:
                return row
            position += 1
        return None


def _parse(line: bytes) -> ImageCaptions | None:
    try:
        row = json.loads(line)
        scored = [ScoredCaption(c["caption"], c["score"]) for c in row.get("captions", ())]
        return ImageCaptions(row["image"], row["caption"], tuple(scored))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _drop_cut_line(file: BinaryIO) -> None:
    """Truncate a part file behind its last line end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        position = file.read(end - start).rfind(b"\n")
        if position >= 0:
            end = start + position + 1
            break
        end = start
    file.truncate(end)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"
