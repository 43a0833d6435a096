"""Sidecars -> index, quarantine, tokenizer and manifest: what makes a folder a data set."""

import hashlib
from pathlib import Path

from shards.atomic import TEMPORARY_SUFFIX, write_atomic
from shards.build import quarantine_lines
from shards.format import (
    INDEX,
    QUARANTINE,
    TOKENIZER,
    Manifest,
    ShardEntry,
    Sidecar,
    read_sidecar,
    shard_file,
    shard_tars,
    sidecar_path,
    write_index,
    write_manifest,
)
from shards.tokenizer import tokenizer_sha256


def finalize(folder: Path, tokenizer: Path, max_bad: float) -> Manifest:
    """Close a build whose every shard is done.

    Args:
        folder: holds the tars and sidecars of one build, and nothing of another.
        tokenizer: the tokenizer.json that the shards were built with.
        max_bad: the largest share, 0 to 1, of records or of captions that may be quarantined.
    Raises:
        ValueError: shards are missing, or of different builds; the tokenizer is another one; too
            much was quarantined (quarantine.jsonl is written all the same, to look at).
    """
    sidecars = read_sidecars(folder)
    if tokenizer_sha256(tokenizer) != sidecars[0].build["tokenizer_sha256"]:
        raise ValueError(f"{tokenizer}: not the tokenizer that {folder} was built with")
    write_atomic(folder / QUARANTINE, quarantine_lines(sidecars))
    _check_quarantine(folder, sidecars, max_bad)
    write_atomic(folder / TOKENIZER, tokenizer.read_bytes())
    write_index(folder, [sidecar.members for sidecar in sidecars])
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):  # of processes killed on the way
        leftover.unlink(missing_ok=True)
    manifest = describe(folder, sidecars)
    write_manifest(folder, manifest)
    return manifest


def describe(folder: Path, sidecars: list[Sidecar]) -> Manifest:
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
        index_sha256=hashlib.sha256((folder / INDEX).read_bytes()).hexdigest(),
        shards=tuple(ShardEntry(s.shard, s.num_samples, s.num_bytes, s.sha256) for s in sidecars),
    )


def read_sidecars(folder: Path) -> list[Sidecar]:
    """All sidecars of a build, in shard order.

    Raises:
        ValueError: none, some are missing, or they are not of one build or not of their tars.
    """
    paths = [sidecar_path(tar) for tar in shard_tars(folder) if sidecar_path(tar).exists()]
    sidecars = [read_sidecar(path) for path in paths]
    if not sidecars:
        raise ValueError(f"{folder}: no finished shard in it")
    first = sidecars[0]
    for path, sidecar in zip(paths, sidecars, strict=True):
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
    missing = set(range(first.num_shards)) - {sidecar.number for sidecar in sidecars}
    if missing:
        named = ", ".join(shard_file(first.build["name"], n) for n in sorted(missing)[:3])
        raise ValueError(
            f"{folder}: {len(missing)} of {first.num_shards} shards are not done ({named}); "
            "run the build again, it does only what is missing"
        )
    return sidecars


def _check_quarantine(folder: Path, sidecars: list[Sidecar], max_bad: float) -> None:
    entries = [entry for sidecar in sidecars for entry in sidecar.quarantine]
    bad_captions = sum(entry["caption"] is not None for entry in entries)
    parts = (
        ("records", len(entries) - bad_captions, sum(s.num_records for s in sidecars)),
        ("captions", bad_captions, bad_captions + sum(s.num_captions for s in sidecars)),
    )
    for what, bad, total in parts:
        if bad > max_bad * total:
            raise ValueError(
                f"{folder}: {bad:,} of {total:,} {what} ({bad / total:.1%}) are bad, more than "
                f"--max-bad {max_bad:.1%}; {folder / QUARANTINE} names each with its reason. Mend "
                "them and build into a new folder, or allow them with --max-bad"
            )
