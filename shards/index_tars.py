"""Indexing existing tars in place, without changing a byte of them.

The trainer reads a sample at its position in the tar and tokenises the captions as it reads them.
Samples that it cannot read this way are rejected by name: images that are not JPEG or that EXIF
rotates, and samples without a caption. `build --webdataset` packs such samples into new shards.
"""

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.build import check_record, quarantine_entry, tokenise
from shards.format.manifest import FOREIGN, Manifest
from shards.format.sidecar import Sidecar
from shards.format.tar import Extent, Member
from shards.guard import bounded_in_own_process
from shards.images import ImagePolicy, RejectedImageError, pack_image
from shards.plain_captions import Encoder, fast_encoder
from shards.retry import persistently
from shards.sources.caption_member import read_captions
from shards.sources.record import Record, TarSpan, is_utf8, source_sha256
from shards.sources.tars import list_tars, read_tars
from shards.storage import local_copy, size_of
from shards.tokenizer import UNK, load_tokenizer, tokenizer_sha256

AS_IT_IS = ImagePolicy(resize_short=0, quality=90)  # keeps the bytes of upright RGB JPEGs


def is_foreign(manifest: Manifest) -> bool:
    """Whether the tars of a data set were made by other software and indexed in place."""
    return manifest.image_policy == FOREIGN


def unlisted_tars(folder: Path, manifest: Manifest) -> list[str]:
    """The tars in the folder of a data set that its manifest does not list."""
    listed = {shard.file for shard in manifest.shards}
    found = persistently(folder, lambda: sorted(path.name for path in folder.glob("*.tar")))
    return [name for name in found if name not in listed]


def index_tars(folder: Path, tokenizer: Path) -> Iterator[Sidecar]:
    """For each tar of a folder, what its sidecar would hold. Nothing is written.

    Raises:
        ValueError: there is no tar, or one is damaged: see `read_tars`.
        OSError: a tar cannot be read.
    """
    records = read_tars(folder)
    build = {
        "name": folder.name,
        "image_policy": FOREIGN,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "source_sha256": source_sha256(records),
    }
    encode = fast_encoder(load_tokenizer(tokenizer))
    tars: dict[str, list[Record]] = {path.name: [] for path in list_tars(folder)}
    for record in records:
        assert record.span is not None
        tars[record.span.tar].append(record)
    for number, (name, group) in enumerate(tars.items()):
        yield _index_tar(folder / name, group, encode, build, number, len(tars))


def foreign_meta(data: bytes, encode: Encoder) -> dict[str, Any]:
    """The captions and tokens of a foreign sample, in the form of the JSON of our own samples.

    Captions that `index_tars` rejected are left out.

    Raises:
        ValueError: the captions cannot be read.
    """
    captions = [caption for caption in read_captions(data) if is_utf8(caption)]
    good = [pair for pair in zip(captions, encode(captions), strict=True) if pair[1]]
    return {"captions": [caption for caption, _ in good], "tokens": [ids for _, ids in good]}


def _index_tar(
    path: Path,
    records: list[Record],
    encode: Encoder,
    build: dict[str, Any],
    number: int,
    num_tars: int,
) -> Sidecar:
    members: list[Member] = []
    quarantine: list[dict[str, Any]] = []
    lengths: Counter[int] = Counter()
    num_unk = 0
    with local_copy(path) as local, open(local, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        for record in records:
            captions, tokens, rejected_captions = tokenise(record, encode)
            quarantine += rejected_captions
            try:
                check_record(record, captions)
                member = _member(file.fileno(), record)
            except RejectedImageError as error:
                quarantine.append(quarantine_entry(record, error.reason, error.detail))
                continue
            members.append(member)
            lengths.update(map(len, tokens))
            num_unk += sum(ids.count(UNK) for ids in tokens)
    return Sidecar(
        shard=path.name,
        number=number,
        num_shards=num_tars,
        build=build,
        num_samples=len(members),
        num_captions=lengths.total(),
        num_tokens=sum(length * count for length, count in lengths.items()),
        num_unk=num_unk,
        caption_lengths=tuple(sorted(lengths.items())),
        num_bytes=size_of(path),
        sha256=sha256,
        members=tuple(members),
        quarantine=tuple(quarantine),
        num_records=len(records),
    )


def _member(descriptor: int, record: Record) -> Member:
    """The position of a sample, after checking that the trainer can read it.

    Raises:
        RejectedImageError: the trainer cannot read it.
    """
    assert record.span is not None
    assert record.caption_span is not None  # `check_record` passed, so there are captions
    image = os.pread(descriptor, record.span.size, record.span.offset)
    packed, _, _ = bounded_in_own_process(lambda: pack_image(image, AS_IT_IS))
    if packed != image:
        raise RejectedImageError("not an upright RGB JPEG", "`build --webdataset` packs it as one")
    meta = os.pread(descriptor, record.caption_span.size, record.caption_span.offset)
    if not _gives(meta, record.captions):  # the trainer sees the bytes only, not the extension
        raise RejectedImageError(
            "a .txt that is JSON with captions", "`build --webdataset` packs it"
        )
    return Member(record.key, _extent(record.span, image), _extent(record.caption_span, meta))


def _gives(meta: bytes, captions: tuple[str, ...]) -> bool:
    try:
        return read_captions(meta) == captions
    except ValueError:
        return False


def _extent(span: TarSpan, data: bytes) -> Extent:
    return Extent(span.offset, len(data), zlib.crc32(data))
