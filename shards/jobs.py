"""A data set's shard jobs: which there are, which are done, which are worth doing again."""

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from shards.build import ShardJob, tokenise
from shards.format.names import KEY_CHARACTERS, MANIFEST, shard_file, shard_tars
from shards.format.sidecar import read_sidecar, sidecar_path
from shards.image_bytes import PASSING_REASONS, is_readable
from shards.images import ImagePolicy
from shards.plain_captions import fast_encoder
from shards.plan import plan_shards
from shards.sources.record import Record, source_sha256
from shards.storage import persistently, size_of
from shards.tokenizer import tokenizer_sha256, unknown_words

UNK_SAMPLE = 2_000  # records whose captions are tried before anything is packed


def plan_jobs(
    records: list[Record],
    images_dir: Path,
    out_dir: Path,
    tokenizer: Path,
    name: str,
    policy: ImagePolicy,
    samples_per_shard: int,
) -> list[ShardJob]:
    """Every shard job of a data set, the same whoever plans it.

    Raises:
        ValueError: the name cannot be a file's, or ids stand more than once.
    """
    if not name or not set(name) <= KEY_CHARACTERS:
        raise ValueError(f"--name must be of [0-9a-z_-], not {name!r}")
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


def check_unknown_words(
    jobs: Iterable[ShardJob], tokenizer: Tokenizer, path: Path, max_unk: float
) -> None:
    """Refuse a tokenizer that does not fit the captions, before hours of work are spent on it.

    The first records of the plan are a fair draw of all; `finalize` counts every token.

    Raises:
        ValueError: more than `max_unk` of the tokens are UNK; the commonest such words are named.
    """
    encode = fast_encoder(tokenizer)
    num_tokens = 0
    unknown: Counter[str] = Counter()
    for record in islice((record for job in jobs for record in job.records), UNK_SAMPLE):
        captions, tokens, _ = tokenise(record, encode)
        num_tokens += sum(map(len, tokens))
        for caption in captions:
            unknown.update(unknown_words(tokenizer, caption))
    if unknown.total() > max_unk * num_tokens:
        words = ", ".join(f"{word!r} ({count:,})" for word, count in unknown.most_common(10))
        raise ValueError(
            f"{path}: {unknown.total() / num_tokens:.1%} of the captions' tokens are UNK, more "
            f"than --max_unk {max_unk:.1%}; the commonest words that it lacks: {words}. Make a "
            "tokenizer from these captions (python -m shards tokenizer), with a lower --min_count "
            "or --kind bpe, or allow it with --max_unk"
        )


def open_jobs(jobs: list[ShardJob]) -> list[ShardJob]:
    """The jobs still to be done: those without a whole shard, and those whose shard left out
    images for a reason that has passed. What vouched for the latter is removed.

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
        except FileNotFoundError:  # a kill between tar and sidecar: this shard is done again
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
        # The manifest vouches for a whole data set: without every shard it must not stand.
        manifest = out_dir / MANIFEST
        persistently(manifest, lambda: manifest.unlink(missing_ok=True))
    return still_open


def _another_build(out_dir: Path) -> ValueError:
    return ValueError(
        f"{out_dir}: holds shards built from another source, tokenizer or options; choose another "
        "--out or remove it"
    )


def _has_passed(job: ShardJob, quarantine: Iterable[dict]) -> bool:
    names = {entry["image_id"] for entry in quarantine if entry["reason"] in PASSING_REASONS}
    return any(
        record.image_id in names and is_readable(job.images_dir, record) for record in job.records
    )
