"""Finishing a data set: index, quarantine list, tokenizer and manifest, made from the sidecars."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.atomic import remove_abandoned, write_atomic
from shards.format.index import index_columns, write_index
from shards.format.manifest import Manifest, ShardEntry, write_manifest
from shards.format.names import INDEX, QUARANTINE, TOKENIZER, shard_file, shard_tars
from shards.format.sidecar import Sidecar, read_sidecar, sidecar_path
from shards.limits import check_rejected, check_unk
from shards.messages import counted
from shards.retry import persistently
from shards.storage import read_bytes, size_of
from shards.tokenizer import tokenizer_sha256


def finalize(
    folder: Path, tokenizer: Path | None, max_rejected: float, max_unk: float
) -> tuple[Manifest, list[Sidecar]]:
    """Write the manifest and index of a build once all its shards are packed.

    Args:
        folder: holds the tars and sidecars of one build, and none of another.
        tokenizer: the tokenizer.json of the build; None takes the one that its jobs left in
            `folder`.
        max_rejected: the largest share, 0 to 1, of records or of captions that may be rejected.
        max_unk: the largest share, 0 to 1, of tokens that may be UNK.
    Returns:
        The manifest, and the sidecars without their members.
    Raises:
        ValueError: shards are missing, or belong to different builds; a tar does not fit its
            sidecar; the tokenizer is missing or another one; too many records or captions were
            rejected (quarantine.jsonl is written even then), or too many tokens are UNK.
    """
    left = folder / TOKENIZER
    if tokenizer is None and not persistently(left, left.is_file):
        next(read_sidecars(folder))  # says so where there is no build at all
        raise ValueError(f"{folder}: has no {TOKENIZER}; give the tokenizer with --tokenizer")
    return close_data_set(folder, read_sidecars(folder), tokenizer or left, max_rejected, max_unk)


def close_data_set(
    folder: Path, done: Iterable[Sidecar], tokenizer: Path, max_rejected: float, max_unk: float
) -> tuple[Manifest, list[Sidecar]]:
    """Do the work of `finalize` with the sidecars given."""
    sidecars: list[Sidecar] = []
    columns: list[dict[str, np.ndarray]] = []
    for sidecar in done:
        if size_of(folder / sidecar.shard) != sidecar.num_bytes:
            raise ValueError(
                f"{folder / sidecar.shard}: its size is not the one in its sidecar; run the build "
                "again"
            )
        columns.append(index_columns(sidecar.members))
        sidecars.append(replace(sidecar, members=()))  # a million members take a gigabyte
    if tokenizer_sha256(tokenizer) != sidecars[0].build["tokenizer_sha256"]:
        raise ValueError(
            f"{tokenizer}: not the tokenizer that {folder} was built with; give that one with "
            "--tokenizer"
        )
    write_atomic(folder / QUARANTINE, quarantine_lines(sidecars))
    check_rejected(folder, sidecars, max_rejected)
    check_unk(folder, sidecars, max_unk)
    write_atomic(folder / TOKENIZER, read_bytes(tokenizer))
    write_index(folder, columns)
    remove_abandoned(folder)
    manifest = describe(folder, sidecars)
    write_manifest(folder, manifest)
    return manifest, sidecars


def describe(folder: Path, sidecars: Sequence[Sidecar]) -> Manifest:
    """The manifest of the data set made of these sidecars and the index in `folder`."""
    build = sidecars[0].build
    return Manifest(
        name=build["name"],
        num_samples=sum(s.num_samples for s in sidecars),
        num_captions=sum(s.num_captions for s in sidecars),
        num_tokens=sum(s.num_tokens for s in sidecars),
        num_unk=sum(s.num_unk for s in sidecars),
        num_quarantined=sum(len(s.quarantine) for s in sidecars),
        image_policy=build["image_policy"],
        tokenizer_sha256=build["tokenizer_sha256"],
        source_sha256=build["source_sha256"],
        index_sha256=hashlib.sha256(read_bytes(folder / INDEX)).hexdigest(),
        shards=tuple(ShardEntry(s.shard, s.num_samples, s.num_bytes, s.sha256) for s in sidecars),
    )


def read_sidecars(folder: Path) -> Iterator[Sidecar]:
    """All sidecars of a build, in shard order, one at a time.

    Raises:
        ValueError: there is none, some are missing, they belong to several builds, or one does not
            belong to its tar.
    """
    paths = [sidecar_path(tar) for tar in shard_tars(folder)]
    first: Sidecar | None = None
    missing: set[int] = set()
    for path in paths:
        if not persistently(path, path.exists):
            continue
        try:
            sidecar = read_sidecar(path)
        except FileNotFoundError:  # a build has just removed it, to pack the shard again
            continue
        if first is None:
            first = sidecar
            missing = set(range(first.num_shards))
        beside = path.with_suffix(".tar").name
        named = shard_file(sidecar.build["name"], sidecar.number)
        if not beside == named == sidecar.shard or sidecar.number >= sidecar.num_shards:
            raise ValueError(
                f"{path}: says that it belongs to {sidecar.shard}, shard {sidecar.number} of "
                f"{sidecar.num_shards} of {sidecar.build['name']!r}; remove it and its tar and "
                "run the build again"
            )
        if sidecar.build != first.build or sidecar.num_shards != first.num_shards:
            raise ValueError(
                f"{folder}: {sidecar.shard} and {first.shard} belong to different builds; build "
                "each into a folder of its own"
            )
        missing.discard(sidecar.number)
        yield sidecar
    if first is None:
        if not persistently(folder, folder.is_dir):
            raise ValueError(f"{folder}: no such shard folder")
        raise ValueError(f"{folder}: holds no finished shard; run `python -m shards build` first")
    if missing:
        named = ", ".join(shard_file(first.build["name"], n) for n in sorted(missing)[:3])
        raise ValueError(
            f"{folder}: {len(missing)} of {counted(first.num_shards, 'shard')} are not packed "
            f"({named}); run the build again, it packs only what is missing"
        )


def quarantine_lines(sidecars: Sequence[Sidecar]) -> bytes:
    """The contents of quarantine.jsonl for the shards of a build."""
    entries: Iterator[dict[str, Any]] = (e for sidecar in sidecars for e in sidecar.quarantine)
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()
