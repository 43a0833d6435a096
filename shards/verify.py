"""Read a finished data set again, every byte, and name each thing that is not as recorded."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import fields
from itertools import accumulate
from pathlib import Path

from tokenizers import Tokenizer

from shards.build import quarantine_lines
from shards.finalize import describe, read_sidecars
from shards.format import (
    INDEX,
    MANIFEST,
    QUARANTINE,
    TOKENIZER,
    Extent,
    Index,
    Manifest,
    ShardEntry,
    Sidecar,
    read_index,
    read_manifest,
    sidecar_path,
)
from shards.images import BadImageError, decode_rgb
from shards.tokenizer import encode, load_tokenizer, tokenizer_sha256


def verify(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Check manifest, index, sidecars, tars, pictures and tokens against each other.

    Yields:
        After each part of the work the number of samples checked in it, and its faults: one line
        each, naming the file and the sample.
    Raises:
        ValueError: there is no finished data set to check.
    """
    manifest = read_manifest(folder)
    index = read_index(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    sidecars = read_sidecars(folder)
    starts = [0, *accumulate(len(sidecar.members) for sidecar in sidecars)]
    faults = list(_manifest_faults(manifest, describe(folder, sidecars)))
    if tokenizer_sha256(folder / TOKENIZER) != sidecars[0].build["tokenizer_sha256"]:
        faults.append(f"{TOKENIZER}: not the tokenizer that the shards were built with")
    quarantine = folder / QUARANTINE
    if not quarantine.is_file() or quarantine.read_bytes() != quarantine_lines(sidecars):
        faults.append(f"{QUARANTINE}: not the records and captions that the sidecars left out")
    if index.shard_starts.tolist() != starts or len(index) != starts[-1]:
        faults.append(
            f"{INDEX}: {len(index)} samples in {len(index.shard_starts) - 1} shards, not dealt as "
            f"the sidecars' {starts[-1]} in {len(sidecars)} are; rebuild it with finalize"
        )
    yield 0, faults
    for sidecar, first in zip(sidecars, starts, strict=False):
        yield len(sidecar.members), list(_shard_faults(folder, sidecar, index, first, tokenizer))


def _manifest_faults(manifest: Manifest, rebuilt: Manifest) -> Iterator[str]:
    """Each field in which a manifest differs from the one that its folder would be given now."""
    if manifest.index_sha256 != rebuilt.index_sha256:  # either file may be the damaged one
        yield f"{INDEX}: its sha256 is not the index_sha256 of {MANIFEST}"
    for field in fields(Manifest):
        found, wanted = getattr(manifest, field.name), getattr(rebuilt, field.name)
        if found != wanted and field.name not in ("index_sha256", "shards"):
            yield f"{MANIFEST}: {field.name} is {found!r}, the sidecars give {wanted!r}"
    if len(manifest.shards) != len(rebuilt.shards):
        yield f"{MANIFEST}: {len(manifest.shards)} shards, {len(rebuilt.shards)} have sidecars"
        return
    for entry, should in zip(manifest.shards, rebuilt.shards, strict=True):
        for field in fields(ShardEntry):
            found, wanted = getattr(entry, field.name), getattr(should, field.name)
            if found != wanted:
                sidecar = sidecar_path(Path(should.file))
                yield (
                    f"{MANIFEST}: {field.name} of {should.file} is {found!r}, "
                    f"its sidecar {sidecar} gives {wanted!r}"
                )


def _shard_faults(
    folder: Path, sidecar: Sidecar, index: Index, first: int, tokenizer: Tokenizer
) -> Iterator[str]:
    path = folder / sidecar.shard
    yield from _sidecar_faults(path, sidecar)
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sidecar.sha256:
            yield f"{path.name}: sha256 differs from its sidecar's"
        names = [name for m in sidecar.members for name in (f"{m.key}.jpg", f"{m.key}.json")]
        try:
            with tarfile.open(path) as tar:
                if tar.getnames() != names:
                    yield f"{path.name}: its members are not those of its sidecar"
        except tarfile.TarError as error:
            yield f"{path.name}: not a readable tar ({error})"
        for sample, member in enumerate(sidecar.members, start=first):
            where = f"{path.name}: {member.key}"
            wanted = (member.key.encode(), member.image, member.meta)
            if sample < len(index) and _index_row(index, sample) != wanted:
                yield f"{where}: {INDEX} says otherwise than {sidecar_path(path).name}"
            for part, extent in (("jpg", member.image), ("json", member.meta)):
                data = os.pread(file.fileno(), extent.size, extent.offset)
                if zlib.crc32(data) != extent.crc32:
                    yield f"{where}.{part}: crc32 differs"
                elif part == "jpg":
                    yield from _image_faults(where, data)
                else:
                    yield from _meta_faults(where, data, tokenizer)


def _sidecar_faults(path: Path, sidecar: Sidecar) -> Iterator[str]:
    name = sidecar_path(path).name
    left_out = sum(entry["caption"] is None for entry in sidecar.quarantine)
    for part, wanted in (
        ("num_samples", len(sidecar.members)),
        ("num_records", len(sidecar.members) + left_out),
        ("num_bytes", path.stat().st_size),
    ):
        if getattr(sidecar, part) != wanted:
            yield f"{name}: {part} is {getattr(sidecar, part)}, there are {wanted}"


def _index_row(index: Index, sample: int) -> tuple[bytes, Extent, Extent]:
    image = (index.image_offset[sample], index.image_size[sample], index.image_crc32[sample])
    meta = (index.meta_offset[sample], index.meta_size[sample], index.meta_crc32[sample])
    return bytes(index.keys[sample]), Extent(*map(int, image)), Extent(*map(int, meta))


def _image_faults(where: str, data: bytes) -> Iterator[str]:
    try:
        decode_rgb(data)
    except BadImageError as error:
        yield f"{where}.jpg: {error}"


def _meta_faults(where: str, data: bytes, tokenizer: Tokenizer) -> Iterator[str]:
    meta = json.loads(data)  # its crc32 was right, so it is what the builder wrote
    if [encode(tokenizer, caption) for caption in meta["captions"]] != meta["tokens"]:
        yield f"{where}.json: the captions do not give the stored tokens"
