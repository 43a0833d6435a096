"""The figures of a build: report.json, and the same for people."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shards.atomic import write_atomic
from shards.format.manifest import Manifest
from shards.format.names import QUARANTINE
from shards.format.sidecar import Sidecar
from shards.messages import counted

REPORT = "report.json"
PERCENTILES = (5, 50, 95, 100)


def make_report(
    manifest: Manifest, sidecars: Sequence[Sidecar], images_per_s: float | None
) -> dict[str, Any]:
    """The figures of a finished build.

    Args:
        images_per_s: records a second of the run that finished the build; None if it packed none.
    """
    num_records = 0
    reasons: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    for sidecar in sidecars:
        num_records += sidecar.num_records
        reasons.update(entry["reason"] for entry in sidecar.quarantine)
        lengths.update(dict(sidecar.caption_lengths))
    return {
        "images_in": num_records,
        "images_packed": manifest.num_samples,
        "rejected": dict(sorted(reasons.items())),
        "captions": manifest.num_captions,
        "tokens": manifest.num_tokens,
        "unk_share": manifest.num_unk / max(manifest.num_tokens, 1),
        "caption_tokens": {f"p{p}": percentile(lengths, p) for p in PERCENTILES},
        "shards": len(manifest.shards),
        "bytes": sum(shard.num_bytes for shard in manifest.shards),
        "images_per_s": images_per_s and round(images_per_s, 1),
        "digest": manifest.digest,
    }


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write report.json. It holds a speed, so it differs between builds, unlike all other files."""
    write_atomic(folder / REPORT, json.dumps(report, indent=2).encode() + b"\n")


def percentile(counts: Counter[int], percent: int) -> int:
    """The smallest value that `percent` % of the counted values do not exceed; 0 for no values."""
    wanted = counts.total() * percent / 100
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value
    return 0


def report_lines(folder: Path, report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    speed = f", {report['images_per_s']:,} images/s" if report["images_per_s"] else ""
    lengths = report["caption_tokens"]
    yield (
        f"{folder}: {report['images_packed']:,} of {counted(report['images_in'], 'image')} and "
        f"{counted(report['captions'], 'caption')} in {counted(report['shards'], 'shard')}, "
        f"{report['bytes'] / 1e6:,.1f} MB{speed}"
    )
    yield (
        f"  {counted(report['tokens'], 'token')}, {report['unk_share']:.2%} UNK; tokens in a "
        f"caption: median {lengths['p50']}, 5 % have at most {lengths['p5']}, 95 % at most "
        f"{lengths['p95']}, longest {lengths['p100']}; digest {report['digest'][:12]}"
    )
    for reason, count in sorted(report["rejected"].items(), key=lambda item: -item[1]):
        yield f"  rejected, {reason}: {count:,} (listed in {folder / QUARANTINE})"
