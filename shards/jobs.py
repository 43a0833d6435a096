"""The shard jobs of a data set: planning them, and finding those that are still to be done."""

from collections.abc import Iterable
from pathlib import Path

from shards.atomic import write_atomic
from shards.build import ShardJob
from shards.format.names import KEY_CHARACTERS, MANIFEST, TOKENIZER, shard_file, shard_tars
from shards.format.sidecar import read_sidecar, sidecar_path
from shards.image_bytes import PASSING_REASONS, is_readable
from shards.images import ImagePolicy
from shards.plan import plan_shards
from shards.retry import persistently
from shards.sources.record import Record, source_sha256
from shards.storage import read_bytes, size_of
from shards.tokenizer import tokenizer_sha256


def plan_jobs(
    records: list[Record],
    images_dir: Path,
    out_dir: Path,
    tokenizer: Path,
    name: str,
    policy: ImagePolicy,
    samples_per_shard: int,
) -> list[ShardJob]:
    """All shard jobs of a data set. Every process that plans them gets the same jobs.

    Raises:
        ValueError: the name cannot be part of a file name, or an image id occurs twice.
    """
    if not name or not set(name) <= KEY_CHARACTERS:
        raise ValueError(f"--name must consist of 0-9, a-z, _ and -, not {name!r}")
    plan = plan_shards([record.key for record in records], samples_per_shard)
    build = {
        "name": name,
        "image_policy": {"resize_short": policy.resize_short, "quality": policy.quality},
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "source_sha256": source_sha256(records),
    }
    return [
        ShardJob(
            images_dir=images_dir,
            out_dir=out_dir,
            tokenizer=tokenizer,
            number=number,
            num_shards=len(plan),
            build=build,
            records=tuple(records[position] for position in positions),
        )
        for number, positions in enumerate(plan)
    ]


def open_jobs(jobs: list[ShardJob]) -> list[ShardJob]:
    """The jobs that are still to be done.

    These are jobs without a finished shard, and jobs whose shard rejected images that can be read
    now. The sidecars of the latter are removed.

    Raises:
        ValueError: the folder holds shards of another build.
    """
    if not jobs:  # an array may have more members than there are shards
        return []
    out_dir = jobs[0].out_dir
    build, num_shards = jobs[0].build, jobs[0].num_shards
    present = {path.name for path in shard_tars(out_dir)}
    planned = {shard_file(build["name"], number) for number in range(num_shards)}
    if present - planned:
        raise _another_build(out_dir)
    finished = set()
    for job in jobs:
        if job.tar_path.name not in present:
            continue
        path = sidecar_path(job.tar_path)
        try:
            sidecar = read_sidecar(path)
        except FileNotFoundError:  # the build was killed between tar and sidecar
            continue
        if sidecar.build != build or sidecar.num_shards != num_shards:
            raise _another_build(out_dir)
        if size_of(job.tar_path) != sidecar.num_bytes:
            continue
        if _has_passed(job, sidecar.quarantine):
            persistently(path, lambda path=path: path.unlink(missing_ok=True))  # type: ignore[misc]
        else:
            finished.add(job.number)
    still_open = [job for job in jobs if job.number not in finished]
    if still_open:
        # A manifest says that the data set is complete: it must not exist while a shard is missing.
        manifest = out_dir / MANIFEST
        persistently(manifest, lambda: manifest.unlink(missing_ok=True))
    return still_open


def leave_tokenizer(out_dir: Path, tokenizer: Path) -> None:
    """Copy the tokenizer into the shard folder, where `finalize` finds it."""
    target, data = out_dir / TOKENIZER, read_bytes(tokenizer)
    if not persistently(target, target.is_file) or read_bytes(target) != data:
        write_atomic(target, data)


def _another_build(out_dir: Path) -> ValueError:
    return ValueError(
        f"{out_dir}: holds shards built from another source, tokenizer or options; choose another "
        "--out or remove this folder"
    )


def _has_passed(job: ShardJob, quarantine: Iterable[dict]) -> bool:
    """Whether an image that was missing or unreadable can be read now."""
    names = {entry["image_id"] for entry in quarantine if entry["reason"] in PASSING_REASONS}
    return any(
        record.image_id in names and is_readable(job.images_dir, record) for record in job.records
    )
