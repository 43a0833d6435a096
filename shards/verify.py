"""Verifying a finished data set: every byte is read again, and each fault is named."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from shards.finalize import describe, quarantine_lines
from shards.format.features import FeaturePolicy, feature_policy, unpack_features
from shards.format.index import Index, index_columns, read_index
from shards.format.manifest import Manifest, ShardEntry, read_manifest
from shards.format.names import (
    INDEX,
    MANIFEST,
    QUARANTINE,
    TOKENIZER,
    image_id_of,
    shard_file,
    shard_tars,
)
from shards.format.sidecar import Sidecar, read_sidecar, sidecar_path
from shards.images import RejectedImageError, decode_rgb
from shards.index_tars import index_tars, is_foreign, unlisted_tars
from shards.messages import counted
from shards.retry import persistently
from shards.sources.tars import unreadable_tars
from shards.storage import local_copy, read_bytes, size_of
from shards.tokenizer import encode_all, load_tokenizer, tokenizer_sha256


def verify(folder: Path, fast: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Check manifest, index, sidecars, tars, images or features, and tokens against each other.

    Args:
        fast: check sizes and sidecars only, read no tar.
    Yields:
        For each part of the work, the number of samples that it checked, and its faults: one line
        each that names the file and the sample.
    Raises:
        ValueError: the folder is not a finished data set.
    """
    manifest = read_manifest(folder)
    index = read_index(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    foreign = is_foreign(manifest)
    if foreign and fast:
        yield len(index), list(_size_faults(folder, manifest))
        return
    sidecars: list[Sidecar] = []
    rows = list(pairwise(index.shard_starts.tolist()))
    numbers = {shard.file: number for number, shard in enumerate(manifest.shards)}
    tokenizer_path = folder / TOKENIZER
    all_readable = True
    found = _foreign_sidecars(folder, tokenizer_path) if foreign else _sidecars(folder)
    for sidecar in found:
        if isinstance(sidecar, str):  # the shard cannot be checked any further
            all_readable = False
            yield 0, [sidecar]
            continue
        faults = list(_sidecar_faults(folder / sidecar.shard, sidecar))
        # Our tars are numbered. A tar made by others is found by name: one may be missing or new.
        number = numbers.get(sidecar.shard, len(rows)) if foreign else sidecar.number
        if number < len(rows):
            faults += _index_faults(sidecar, index, *rows[number], foreign)
        if not fast and not foreign and size_of(folder / sidecar.shard) == sidecar.num_bytes:
            faults += _shard_faults(folder / sidecar.shard, sidecar, tokenizer)
        yield len(sidecar.members), faults
        sidecars.append(replace(sidecar, members=()))
    if all_readable:
        yield 0, list(_folder_faults(folder, manifest, sidecars, index))


def _sidecars(folder: Path) -> Iterator[Sidecar | str]:
    """The sidecar of each shard, or the fault because of which the shard cannot be checked.

    Raises:
        ValueError: there is no shard.
    """
    first: Sidecar | None = None
    missing: set[int] = set()
    for path in map(sidecar_path, shard_tars(folder)):
        try:
            sidecar = read_sidecar(path)
        except FileNotFoundError:
            yield f"{path.name}: is missing"
            continue
        except ValueError as error:
            yield f"{path.name}: {str(error).removeprefix(f'{path}: ')}"
            continue
        if first is None:
            first = sidecar
            missing = set(range(first.num_shards))
        number, name = sidecar.number, sidecar.build["name"]
        if (
            sidecar.shard != shard_file(name, number)
            or sidecar_path(folder / sidecar.shard) != path
        ):
            yield f"{path.name}: belongs to {sidecar.shard}, shard {number} of {name!r}"
        elif (sidecar.build, sidecar.num_shards) != (first.build, first.num_shards):
            yield f"{path.name}: belongs to another build than {first.shard}"
        else:
            missing.discard(number)
            yield sidecar
    if first is None:
        if not shard_tars(folder):
            raise ValueError(f"{folder}: holds no shard")
        return
    for number in sorted(missing):
        tar = folder / shard_file(first.build["name"], number)
        if not persistently(tar, tar.exists):
            yield f"{tar.name}: is missing"


def _foreign_sidecars(folder: Path, tokenizer: Path) -> Iterator[Sidecar | str]:
    """What the sidecar of each tar would hold, or all tars that cannot be read.

    Keys depend on all tars, so that nothing more can be checked without one of them.
    """
    try:
        yield from index_tars(folder, tokenizer)
    except ValueError:
        unreadable = list(unreadable_tars(folder))
        if not unreadable:
            raise
        yield from (fault.removeprefix(f"{folder}/") for fault in unreadable)


def _size_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Faults of a foreign data set that show without reading its tars."""
    yield from _unlisted_faults(folder, manifest)
    for shard in manifest.shards:
        try:
            num_bytes = size_of(folder / shard.file)
        except FileNotFoundError:
            yield f"{shard.file}: is missing"
            continue
        if num_bytes != shard.num_bytes:
            yield f"{shard.file}: {num_bytes:,} bytes, not the {shard.num_bytes:,} of {MANIFEST}"


def _unlisted_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    for name in unlisted_tars(folder, manifest):
        yield f"{name}: not in {INDEX}; index the folder again, or move the tar elsewhere"


def _folder_faults(
    folder: Path, manifest: Manifest, sidecars: list[Sidecar], index: Index
) -> Iterator[str]:
    """Faults of the files that describe all shards."""
    foreign = is_foreign(manifest)
    yield from _manifest_faults(manifest, describe(folder, sidecars), foreign)
    if tokenizer_sha256(folder / TOKENIZER) != sidecars[0].build["tokenizer_sha256"]:
        yield f"{TOKENIZER}: not the tokenizer that the shards were built with"
    if foreign:
        yield from _unlisted_faults(folder, manifest)
    else:
        built = {sidecar.shard for sidecar in sidecars}
        for name in unlisted_tars(folder, manifest):
            if name not in built:
                yield f"{name}: does not belong to this data set, but other readers would read it"
    quarantine = folder / QUARANTINE
    exists = persistently(quarantine, quarantine.exists)
    if not exists or read_bytes(quarantine) != quarantine_lines(sidecars):
        yield f"{QUARANTINE}: does not list the records and captions that the sidecars reject"
    starts = [0, *accumulate(sidecar.num_samples for sidecar in sidecars)]
    command = "index" if foreign else "finalize"
    if index.shard_starts.tolist() != starts or len(index) != starts[-1]:
        yield (
            f"{INDEX}: {counted(len(index), 'sample')} in "
            f"{counted(len(index.shard_starts) - 1, 'shard')}, but the shards hold "
            f"{counted(starts[-1], 'sample')} in {counted(len(sidecars), 'shard')}; write it again "
            f"with `{command}`"
        )


def _manifest_faults(manifest: Manifest, rebuilt: Manifest, foreign: bool) -> Iterator[str]:
    """Each field in which the manifest differs from one written now."""
    parts = "the tars" if foreign else "the sidecars"
    renamed = ("name",) if foreign else ()  # the folder may have been renamed since
    if manifest.index_sha256 != rebuilt.index_sha256:  # either file may be damaged
        yield f"{INDEX}: its sha256 is not the index_sha256 of {MANIFEST}"
    for field in fields(Manifest):
        found, wanted = getattr(manifest, field.name), getattr(rebuilt, field.name)
        if found != wanted and field.name not in ("index_sha256", "shards", *renamed):
            yield f"{MANIFEST}: {field.name} is {found!r}, {parts} give {wanted!r}"
    if foreign:  # tars made by others have no numbers: one may be missing or new
        there = {shard.file: shard for shard in rebuilt.shards}
        for entry in manifest.shards:
            if entry.file in there:
                yield from _entry_faults(entry, there[entry.file], "the tar")
            else:
                yield f"{entry.file}: is missing"
    elif len(manifest.shards) != len(rebuilt.shards):
        yield (
            f"{MANIFEST}: lists {counted(len(manifest.shards), 'shard')}, but "
            f"{len(rebuilt.shards)} have sidecars"
        )
    else:
        for entry, should in zip(manifest.shards, rebuilt.shards, strict=True):
            yield from _entry_faults(
                entry, should, f"its sidecar {sidecar_path(Path(should.file))}"
            )


def _entry_faults(entry: ShardEntry, should: ShardEntry, source: str) -> Iterator[str]:
    for name in (field.name for field in fields(ShardEntry)):
        found, wanted = getattr(entry, name), getattr(should, name)
        if found != wanted:
            yield f"{MANIFEST}: {name} of {should.file} is {found!r}, {source} gives {wanted!r}"


def _sidecar_faults(path: Path, sidecar: Sidecar) -> Iterator[str]:
    name = sidecar_path(path).name
    left_out = sum(entry["caption"] is None for entry in sidecar.quarantine)
    for part, wanted in (
        ("num_samples", len(sidecar.members)),
        ("num_records", len(sidecar.members) + left_out),
        ("num_captions", sum(count for _, count in sidecar.caption_lengths)),
        ("num_tokens", sum(length * count for length, count in sidecar.caption_lengths)),
        ("num_bytes", size_of(path)),
    ):
        if getattr(sidecar, part) != wanted:
            yield f"{name}: {part} is {getattr(sidecar, part)}, but there are {wanted}"


def _index_faults(
    sidecar: Sidecar, index: Index, first: int, last: int, foreign: bool
) -> Iterator[str]:
    """Where rows [first, last) of the index differ from the sidecar or the foreign tar.

    Samples are compared by key, so a missing or new one causes no faults of those after it.
    """
    other = "the tar" if foreign else sidecar_path(Path(sidecar.shard)).name
    left_out = {str(q["image_id"]): q["reason"] for q in sidecar.quarantine if q["caption"] is None}
    columns = index_columns(sidecar.members)
    given = {key: place for place, key in enumerate(columns["keys"].tolist())}
    indexed = {key: row for row, key in enumerate(index.keys[first:last].tolist(), first)}
    for key in indexed:
        if key not in given:
            name = key.decode(errors="replace")
            reason = left_out.get(str(image_id_of(name)))
            why = f" ({reason})" if reason else ""
            yield f"{sidecar.shard}: {name}: in {INDEX}, but not in {other}{why}"
    for key in given:
        if key not in indexed:
            yield f"{sidecar.shard}: {key.decode()}: in {other}, but not in {INDEX}"
    common = [key for key in given if key in indexed]
    places, rows = [given[key] for key in common], [indexed[key] for key in common]
    for column, values in columns.items():
        for differs in np.flatnonzero(getattr(index, column)[rows] != values[places]):
            name = common[differs].decode()
            yield f"{sidecar.shard}: {name}: {column} in {INDEX} differs from {other}"
    if rows != sorted(rows) or (len(given), len(indexed)) != (len(sidecar.members), last - first):
        yield f"{sidecar.shard}: {INDEX} or {other} has a sample twice, or in another order"


def _shard_faults(path: Path, sidecar: Sidecar, tokenizer: Tokenizer) -> Iterator[str]:
    policy = feature_policy(sidecar.build["image_policy"])
    kind = "npy" if policy else "jpg"
    with local_copy(path) as local, open(local, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sidecar.sha256:
            yield f"{path.name}: its sha256 differs from its sidecar"
        names = [name for m in sidecar.members for name in (f"{m.key}.{kind}", f"{m.key}.json")]
        try:
            with tarfile.open(local) as tar:
                if tar.getnames() != names:
                    yield f"{path.name}: its members are not the ones that its sidecar lists"
        except tarfile.TarError as error:
            yield f"{path.name}: not a readable tar ({error})"
        for member in sidecar.members:
            where = f"{path.name}: {member.key}"
            for part, extent in ((kind, member.image), ("json", member.meta)):
                data = os.pread(file.fileno(), extent.size, extent.offset)
                if zlib.crc32(data) != extent.crc32:
                    yield f"{where}.{part}: its crc32 differs from the sidecar"
                elif part == "json":
                    yield from _meta_faults(where, data, tokenizer)
                elif policy:
                    yield from _feature_faults(where, data, policy)
                else:
                    yield from _image_faults(where, data)


def _image_faults(where: str, data: bytes) -> Iterator[str]:
    try:
        decode_rgb(data)
    except RejectedImageError as error:
        yield f"{where}.jpg: {error}"


def _feature_faults(where: str, data: bytes, policy: FeaturePolicy) -> Iterator[str]:
    try:
        unpack_features(data, policy)
    except ValueError as error:
        yield f"{where}.npy: {error}"


def _meta_faults(where: str, data: bytes, tokenizer: Tokenizer) -> Iterator[str]:
    meta = json.loads(data)  # its crc32 is right, so it is what the builder wrote
    top = max((max(ids, default=0) for ids in meta["tokens"]), default=0)
    if top >= tokenizer.get_vocab_size():
        yield f"{where}.json: token {top} is outside the vocabulary of {tokenizer.get_vocab_size()}"
    if encode_all(tokenizer, meta["captions"]) != meta["tokens"]:
        yield f"{where}.json: the stored tokens are not those of the captions"
