"""One shard job: records -> one tar and its sidecar, atomically, the same bytes every time."""

import errno
import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shards.atomic import atomic_file
from shards.format import (
    Extent,
    Member,
    Sidecar,
    add_to_tar,
    canonical_json,
    open_tar_for_writing,
    read_sidecar,
    shard_file,
    shard_tars,
    sidecar_path,
    write_sidecar,
)
from shards.images import BadImageError, ImagePolicy, pack_image
from shards.sources import Record, is_utf8
from shards.tokenizer import UNK, encode, load_tokenizer


@dataclass(frozen=True)
class ShardJob:
    """Everything one shard needs: jobs share nothing, so any process may do any of them."""

    images_dir: Path
    out_dir: Path
    tokenizer: Path
    name: str
    number: int
    num_shards: int
    policy: ImagePolicy
    build: dict[str, Any]  # recorded in the sidecar; shards of one data set agree on it
    records: tuple[Record, ...]


def finished_shards(out_dir: Path, build: dict[str, Any], num_shards: int) -> set[int]:
    """Numbers of the shards that earlier runs of the same build finished.

    Raises:
        ValueError: the folder holds shards of another build.
    """
    finished = set()
    for tar_path in shard_tars(out_dir):
        path = sidecar_path(tar_path)
        if not path.exists():  # a kill between tar and sidecar: this shard is done again
            continue
        sidecar = read_sidecar(path)
        if sidecar.build != build or sidecar.num_shards != num_shards:
            raise ValueError(
                f"{out_dir}: holds shards built from another source, tokenizer or options; "
                "choose another --out or remove it"
            )
        if tar_path.stat().st_size == sidecar.num_bytes:
            finished.add(sidecar.number)
    return finished


def build_shard(job: ShardJob, on_record: Callable[[], None]) -> Sidecar:
    """Write the job's tar, then its sidecar.

    Args:
        on_record: called after each record, for progress.
    Raises:
        OSError: the disk's own failures (full, read-only, I/O error): not a record's fault.
    """
    tokenizer = _tokenizer(job.tokenizer)
    members: list[Member] = []
    quarantine: list[dict[str, Any]] = []
    counts = {"num_captions": 0, "num_tokens": 0, "num_unk": 0}
    tar_path = job.out_dir / shard_file(job.name, job.number)
    with atomic_file(tar_path) as file:
        with open_tar_for_writing(file) as tar:
            for record in job.records:
                try:
                    members.append(_pack_record(tar, record, job, tokenizer, quarantine, counts))
                except BadImageError as error:
                    quarantine.append(_quarantined(record, error.reason, error.detail))
                on_record()
        num_bytes = file.tell()
    with open(tar_path, "rb") as written:
        sha256 = hashlib.file_digest(written, "sha256").hexdigest()
    sidecar = Sidecar(
        shard=tar_path.name,
        number=job.number,
        num_shards=job.num_shards,
        build=job.build,
        num_samples=len(members),
        num_bytes=num_bytes,
        sha256=sha256,
        members=tuple(members),
        quarantine=tuple(quarantine),
        num_records=len(job.records),
        **counts,
    )
    write_sidecar(job.out_dir, sidecar)
    return sidecar


@lru_cache(maxsize=1)
def _tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)  # once a process, not once a shard


def _pack_record(
    tar: tarfile.TarFile,
    record: Record,
    job: ShardJob,
    tokenizer: Tokenizer,
    quarantine: list[dict[str, Any]],
    counts: dict[str, int],
) -> Member:
    """Append one sample to the tar, its bad captions to the quarantine, its numbers to counts."""
    captions, tokens = [], []
    for position, caption in enumerate(record.captions):
        if not is_utf8(caption):
            quarantine.append(_quarantined(record, "caption not UTF-8", ascii(caption), position))
            continue
        ids = encode(tokenizer, caption)
        if ids:
            captions.append(caption)
            tokens.append(ids)
        else:
            quarantine.append(_quarantined(record, "empty caption", repr(caption), position))
    if not captions:
        raise BadImageError("no caption", "nothing to train on")
    image, width, height = pack_image(_read_image(job.images_dir, record.file_name), job.policy)
    meta = canonical_json(
        {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "width": width,
            "height": height,
            "captions": captions,
            "tokens": tokens,
        }
    )
    counts["num_captions"] += len(captions)
    counts["num_tokens"] += sum(map(len, tokens))
    counts["num_unk"] += sum(ids.count(UNK) for ids in tokens)
    return Member(
        record.key,
        _add_member(tar, f"{record.key}.jpg", image),
        _add_member(tar, f"{record.key}.json", meta),
    )


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> Extent:
    return Extent(add_to_tar(tar, name, data), len(data), zlib.crc32(data))


def _read_image(images_dir: Path, file_name: str) -> bytes:
    relative = Path(file_name)
    if relative.is_absolute() or ".." in relative.parts:
        raise BadImageError("unsafe file name", "leaves the image folder")
    if not is_utf8(file_name):  # nor could the sample's JSON hold it
        raise BadImageError("unsafe file name", "is not UTF-8")
    if "\0" in file_name:
        raise BadImageError("unsafe file name", "holds a NUL character")
    path = images_dir / relative
    try:
        if not path.is_file():  # a named pipe or a device would be read for ever
            raise BadImageError("missing file", "no such file in the image folder")
        return path.read_bytes()
    except FileNotFoundError:
        raise BadImageError("missing file", "vanished from the image folder") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # the name's fault; anything else is the disk's
            raise BadImageError("unsafe file name", "longer than the disk allows") from None
        raise


def _quarantined(
    record: Record, reason: str, detail: str, caption: int | None = None
) -> dict[str, Any]:
    """One line of quarantine.jsonl. `caption` is None where the whole record is left out."""
    return {
        "image_id": record.image_id,
        # A name that is not UTF-8 is written with its odd characters as \udXXX.
        "file_name": record.file_name.encode(errors="backslashreplace").decode(),
        "caption": caption,
        "reason": reason,
        "detail": detail,
    }


def quarantine_lines(sidecars: list[Sidecar]) -> bytes:
    """The contents of quarantine.jsonl for the shards of a build."""
    entries = [entry for sidecar in sidecars for entry in sidecar.quarantine]
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()
