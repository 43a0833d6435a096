"""Packing one shard: records in, one tar and its sidecar out, the same bytes every time."""

import hashlib
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from shards.atomic import atomic_file
from shards.format.names import shard_file
from shards.format.sidecar import Sidecar, write_sidecar
from shards.format.stored_json import canonical_json
from shards.format.tar import Extent, Member, add_to_tar, open_tar_for_writing
from shards.guard import Packed, bounded, bounded_in_own_process
from shards.image_bytes import read_image, read_images
from shards.images import ImagePolicy, RejectedImageError, pack_image
from shards.messages import system_error
from shards.plain_captions import Encoder, fast_encoder
from shards.sources.record import Record, is_utf8
from shards.storage import is_remote
from shards.tokenizer import UNK, load_tokenizer


@dataclass(frozen=True)
class ShardJob:
    """Everything that is needed to pack one shard. Any process can do any job."""

    images_dir: Path
    out_dir: Path
    tokenizer: Path
    number: int
    num_shards: int
    build: dict[str, Any]  # stored in the sidecar; the same in all shards of a data set
    records: tuple[Record, ...]

    @property
    def tar_path(self) -> Path:
        """The path of the tar to write."""
        return self.out_dir / shard_file(self.build["name"], self.number)


@dataclass(frozen=True)
class Suspicion:
    """Why a shard is packed again after the process that packed it died.

    The second time each image is decoded in a process of its own, so that only that process dies.
    """

    position: int | None = None  # of the record that took too long; None: unknown
    reason: str = ""


def build_shard(
    job: ShardJob, on_record: Callable[[int], None], suspicion: Suspicion | None = None
) -> None:
    """Write the job's tar, then its sidecar.

    Args:
        on_record: called with the position of each record before it is packed, and at the end with
            the number of records.
        suspicion: set where a process died while it packed this shard.
    Raises:
        OSError: the machine failed (full disk, read-only file system, I/O error).
    """
    encode = _encoder(job.tokenizer)
    policy = ImagePolicy(**job.build["image_policy"])
    members: list[Member] = []
    quarantine: list[dict[str, Any]] = []
    lengths: Counter[int] = Counter()
    num_unk = 0
    with atomic_file(job.tar_path) as file:
        with open_tar_for_writing(file) as tar:
            images = read_images(job.images_dir, job.records)
            for position, (record, read) in enumerate(images):
                on_record(position)
                captions, tokens, rejected_captions = tokenise(record, encode)
                quarantine += rejected_captions
                try:
                    check_record(record, captions)
                    if suspicion and suspicion.position == position:
                        raise RejectedImageError("too costly", suspicion.reason)
                    packed = _pack(job.images_dir, record, read(), policy, suspicion is not None)
                except RejectedImageError as error:
                    quarantine.append(quarantine_entry(record, error.reason, error.detail))
                    continue
                members.append(_add_sample(tar, record, packed, captions, tokens))
                lengths.update(map(len, tokens))
                num_unk += sum(ids.count(UNK) for ids in tokens)
        num_bytes = file.tell()
        file.seek(0)
        sha256 = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    on_record(len(job.records))
    write_sidecar(
        job.out_dir,
        Sidecar(
            shard=job.tar_path.name,
            number=job.number,
            num_shards=job.num_shards,
            build=job.build,
            num_records=len(job.records),
            num_samples=len(members),
            num_captions=lengths.total(),
            num_tokens=sum(length * count for length, count in lengths.items()),
            num_unk=num_unk,
            caption_lengths=tuple(sorted(lengths.items())),
            num_bytes=num_bytes,
            sha256=sha256,
            members=tuple(members),
            quarantine=tuple(quarantine),
        ),
    )


@lru_cache(maxsize=1)
def _encoder(path: Path) -> Encoder:
    return fast_encoder(load_tokenizer(path))  # once for a process, not for each shard


def tokenise(
    record: Record, encode: Encoder
) -> tuple[list[str], list[list[int]], list[dict[str, Any]]]:
    """A record's usable captions, their token ids, and quarantine entries for the rejected ones."""
    rejected = []
    captions = []
    for position, caption in enumerate(record.captions):
        if is_utf8(caption):
            captions.append((position, caption))
        else:
            rejected.append(quarantine_entry(record, "caption not UTF-8", ascii(caption), position))
    ids = encode([caption for _, caption in captions])
    good = []
    for (position, caption), tokens in zip(captions, ids, strict=True):
        if tokens:
            good.append((caption, tokens))
        else:
            rejected.append(quarantine_entry(record, "empty caption", repr(caption), position))
    return [caption for caption, _ in good], [tokens for _, tokens in good], rejected


def check_record(record: Record, captions: list[str]) -> None:
    """Refuse a record that is known to be unusable before its image is read.

    Args:
        captions: the captions that `tokenise` returned.
    Raises:
        RejectedImageError: the record cannot be used; it has the reason.
    """
    if record.fault:
        raise RejectedImageError(*record.fault)
    if not captions:
        raise RejectedImageError("no caption", "nothing to train on")


def _pack(
    images_dir: Path, record: Record, data: bytes, policy: ImagePolicy, careful: bool
) -> Packed:
    bound = bounded_in_own_process if careful else bounded
    try:
        return bound(lambda: pack_image(data, policy))
    except RejectedImageError:
        if not is_remote(images_dir):
            raise
    except OSError as error:
        raise OSError(f"{record.file_name}: {system_error(error)}") from None
    # The transfer may have cut it off: an image behind a URL is rejected at the second failure.
    again = read_image(images_dir, record)
    return bound(lambda: pack_image(again, policy))


def _add_sample(
    tar: tarfile.TarFile,
    record: Record,
    packed: Packed,
    captions: list[str],
    tokens: list[list[int]],
) -> Member:
    """Append one sample to the tar."""
    image, width, height = packed
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
    return Member(
        record.key,
        _add_member(tar, f"{record.key}.jpg", image),
        _add_member(tar, f"{record.key}.json", meta),
    )


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> Extent:
    return Extent(add_to_tar(tar, name, data), len(data), zlib.crc32(data))


def quarantine_entry(
    record: Record, reason: str, detail: str, caption: int | None = None
) -> dict[str, Any]:
    """One line of quarantine.jsonl. `caption` is None where the whole record is rejected."""
    return {
        "image_id": record.image_id,
        # Characters that UTF-8 cannot encode are written as \udXXX.
        "file_name": record.file_name.encode(errors="backslashreplace").decode(),
        "caption": caption,
        "reason": reason,
        "detail": detail,
    }
