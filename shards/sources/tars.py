"""An existing WebDataset: tars of pictures with captions beside them, made by anyone."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.format import image_id_of
from shards.sources.record import Record, TarSpan, name_key
from shards.storage import local_copy, persistently

PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")  # the text alone, or an object with `captions` or `caption`
MAX_CAPTION_BYTES = 1 << 20


def read_tars(folder: Path) -> list[Record]:
    """The samples of every tar in a folder, tars by name, samples in their order.

    Keys that stand in several tars are made different by the tars' names.

    Raises:
        ValueError: there is no tar, a tar is damaged, or a sample's captions cannot be read.
    """
    paths = persistently(folder, lambda: sorted(folder.glob("*.tar"), key=lambda path: path.name))
    if not paths:
        raise ValueError(f"{folder}: no .tar in it")
    records = [record for path in paths for record in _read_tar(path)]
    if len({record.key for record in records}) == len(records):
        return records
    return [replace(r, image_id=image_id_of(name_key(r.file_name))) for r in records]


def _read_tar(path: Path) -> list[Record]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    with local_copy(path) as local:
        try:
            with tarfile.open(local, "r:") as tar:
                for member in tar:
                    # A link or a device could stand for anything; webdataset skips them too.
                    if member.isreg():
                        key, part = _split_name(member.name)
                        samples.setdefault(key, {})[part] = member
                _check_end(path, local, tar)
                return [
                    _record(path, tar, key, parts)
                    for key, parts in samples.items()
                    if any(part in parts for part in PICTURES)
                ]
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{path}: not a whole tar ({error})") from error


def _check_end(path: Path, local: Path, tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header, a cut between members or a second, appended tar for the end:
    nothing may be lost."""
    with open(local, "rb") as file:
        file.seek(tar.offset)
        if len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise ValueError(f"{path}: not a whole tar (no mark of its end)")
        file.seek(tar.offset)
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise ValueError(f"{path}: damaged at byte {tar.offset:,}: data that is no member")


def _split_name(name: str) -> tuple[str, str]:
    """`folder/KEY.part` -> folder/KEY, part: webdataset splits at the file name's first dot."""
    folder, slash, file = name.rpartition("/")
    key, _, part = file.partition(".")
    return folder + slash + key, part.lower()


def _record(
    path: Path, tar: tarfile.TarFile, key: str, parts: dict[str, tarfile.TarInfo]
) -> Record:
    picture = next(parts[part] for part in PICTURES if part in parts)
    captions: tuple[str, ...] = ()
    for part in CAPTIONS:
        if part in parts and not captions:
            captions = _captions(f"{path}: {parts[part].name}", part, _read(path, tar, parts[part]))
    return Record(
        image_id_of(name_key(key)),
        f"{path.name}/{picture.name}",
        captions,
        TarSpan(path.name, picture.offset_data, picture.size),
    )


def _read(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_CAPTION_BYTES:
        raise ValueError(f"{path}: {member.name}: {member.size:,} bytes are no caption")
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise ValueError(f"{path}: {member.name}: cut off")
    return data


def _captions(where: str, part: str, data: bytes) -> tuple[str, ...]:
    try:
        if part == "txt":
            return (data.decode().strip(),)
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: no JSON object")
    found = value.get("captions", value.get("caption"))
    several = [found] if isinstance(found, str) else found if found is not None else []
    if not isinstance(several, list) or not all(isinstance(text, str) for text in several):
        raise ValueError(f"{where}: `captions` is no list of strings")
    return tuple(several)
