"""Sidecars -> index, quarantine, tokenizer and manifest: what makes a folder a data set."""

import hashlib
import json
from collections import Counter
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
from shards.storage import persistently, read_bytes, size_of
from shards.tokenizer import tokenizer_sha256


def finalize(
    folder: Path, tokenizer: Path, max_rejected: float, max_unk: float
) -> tuple[Manifest, list[Sidecar]]:
    """Close a build whose every shard is done.

    Args:
        folder: holds the tars and sidecars of one build, and nothing of another.
        tokenizer: the tokenizer.json that the shards were built with.
        max_rejected: the largest share, 0 to 1, of records or of captions that may be quarantined.
        max_unk: the largest share, 0 to 1, of tokens that may be UNK.
    Returns:
        The manifest, and the sidecars without their members.
    Raises:
        ValueError: shards are missing, or of different builds; a tar is not its sidecar's; the
            tokenizer is another one; too much was quarantined (quarantine.jsonl is written all
            the same, to look at) or is UNK.
    """
    return close_data_set(folder, read_sidecars(folder), tokenizer, max_rejected, max_unk)


def close_data_set(
    folder: Path, done: Iterable[Sidecar], tokenizer: Path, max_rejected: float, max_unk: float
) -> tuple[Manifest, list[Sidecar]]:
    """`finalize` with the shards' sidecars given."""
    sidecars: list[Sidecar] = []
    columns: list[dict[str, np.ndarray]] = []
    for sidecar in done:
        if size_of(folder / sidecar.shard) != sidecar.num_bytes:
            raise ValueError(
                f"{folder / sidecar.shard}: not of the size in its sidecar; run the build again"
            )
        columns.append(index_columns(sidecar.members))
        sidecars.append(replace(sidecar, members=()))  # a million of them take a gigabyte
    if tokenizer_sha256(tokenizer) != sidecars[0].build["tokenizer_sha256"]:
        raise ValueError(f"{tokenizer}: not the tokenizer that {folder} was built with")
    write_atomic(folder / QUARANTINE, quarantine_lines(sidecars))
    _check_quarantine(folder, sidecars, max_rejected)
    _check_unk(folder, sidecars, max_unk)
    write_atomic(folder / TOKENIZER, read_bytes(tokenizer))
    write_index(folder, columns)
    remove_abandoned(folder)
    manifest = describe(folder, sidecars)
    write_manifest(folder, manifest)
    return manifest, sidecars


def describe(folder: Path, sidecars: Sequence[Sidecar]) -> Manifest:
    """The manifest of the data set that these sidecars and the index in `folder` make up."""
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
        ValueError: none, some are missing, or they are not of one build or not of their tars.
    """
    paths = [sidecar_path(tar) for tar in shard_tars(folder)]
    first: Sidecar | None = None
    missing: set[int] = set()
    for path in paths:
        if not persistently(path, path.exists):
            continue
        try:
            sidecar = read_sidecar(path)
        except FileNotFoundError:  # just now taken back, to be done again
            continue
        if first is None:
            first = sidecar
            missing = set(range(first.num_shards))
        beside = path.with_suffix(".tar").name
        named = shard_file(sidecar.build["name"], sidecar.number)
        if not beside == named == sidecar.shard or sidecar.number >= sidecar.num_shards:
            raise ValueError(
                f"{path}: says it is of {sidecar.shard}, shard {sidecar.number} of "
                f"{sidecar.num_shards} of {sidecar.build['name']!r}; remove it and its tar and "
                "run the build again"
            )
        if sidecar.build != first.build or sidecar.num_shards != first.num_shards:
            raise ValueError(f"{folder}: {sidecar.shard} is of another build than {first.shard}")
        missing.discard(sidecar.number)
        yield sidecar
    if first is None:
        raise ValueError(f"{folder}: no finished shard in it")
    if missing:
        named = ", ".join(shard_file(first.build["name"], n) for n in sorted(missing)[:3])
        raise ValueError(
            f"{folder}: {len(missing)} of {first.num_shards} shards are not done ({named}); "
            "run the build again, it does only what is missing"
        )


def quarantine_lines(sidecars: Sequence[Sidecar]) -> bytes:
    """The contents of quarantine.jsonl for the shards of a build."""
    entries: Iterator[dict[str, Any]] = (e for sidecar in sidecars for e in sidecar.quarantine)
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()


def _check_quarantine(folder: Path, sidecars: Sequence[Sidecar], max_rejected: float) -> None:
    entries = [entry for sidecar in sidecars for entry in sidecar.quarantine]
    num_captions = sum(entry["caption"] is not None for entry in entries)
    parts = (
        ("records", len(entries) - num_captions, sum(s.num_records for s in sidecars)),
        ("captions", num_captions, num_captions + sum(s.num_captions for s in sidecars)),
    )
    for what, rejected, total in parts:
        if rejected > max_rejected * total:
            raise ValueError(
                f"{folder}: {rejected:,} of {total:,} {what} ({rejected / total:.1%}) were "
                f"rejected, more than --max_rejected {max_rejected:.1%}: {_reasons(entries)}. "
                f"{folder / QUARANTINE} names each. The same build tries missing and unreadable "
                "files again; if you repaired other files, build into a new folder; to accept the "
                "loss, raise --max_rejected"
            )


def _reasons(entries: Sequence[dict[str, Any]]) -> str:
    """How many for each reason, with an example."""
    examples = {entry["reason"]: entry["file_name"] for entry in reversed(entries)}
    counts = Counter(entry["reason"] for entry in entries)
    return "; ".join(f"{r}: {n:,}, such as {examples[r]}" for r, n in counts.most_common())


def _check_unk(folder: Path, sidecars: Sequence[Sidecar], max_unk: float) -> None:
    num_unk, num_tokens = (
        sum(getattr(s, part) for s in sidecars) for part in ("num_unk", "num_tokens")
    )
    if num_unk > max_unk * num_tokens:
        raise ValueError(
            f"{folder}: {num_unk:,} of {num_tokens:,} tokens ({num_unk / num_tokens:.1%}) are UNK, "
            f"more than --max_unk {max_unk:.1%}; make a tokenizer from these captions and build "
            "into a new folder, or allow it with --max_unk"
        )
