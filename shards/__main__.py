"""Command line of the shard builder: `python -m shards COMMAND --help`."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shards.atomic import write_atomic
from shards.build import ShardJob, finished_shards
from shards.executors import run_local
from shards.finalize import finalize
from shards.format import KEY_CHARACTERS, MANIFEST, QUARANTINE, Manifest, read_manifest
from shards.images import ImagePolicy
from shards.plan import plan_shards
from shards.sample_data import draw_data_set
from shards.show import show
from shards.sources import is_utf8, read_coco, source_sha256
from shards.tokenizer import UNK, encode, load_tokenizer, tokenizer_sha256, train_word_tokenizer
from shards.verify import verify

Arguments = argparse.Namespace


def main() -> int:
    """Run one command. Returns the exit code: 0 done, 1 faults found, 2 unusable input."""
    arguments = _parser().parse_args()
    try:
        return int(arguments.run(arguments))
    except (ValueError, OSError) as error:
        print(f"shards {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"shards {arguments.command}: interrupted; finished shards are kept, "
            "the same command goes on from there",
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Arguments], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command("sample", _sample, "draw a captioned sample data set in COCO's layout")
    sub.add_argument("--out", type=Path, required=True, help="folder to write")
    sub.add_argument("--images", type=int, default=2000, help="how many; a tenth is held out")
    sub.add_argument("--seed", type=int, default=0)

    sub = command("tokenizer", _tokenizer, "make a word-level vocabulary from captions")
    sub.add_argument("--annotations", type=Path, required=True, help="COCO caption file")
    sub.add_argument("--out", type=Path, required=True, help="tokenizer.json to write")
    sub.add_argument("--min-count", type=int, default=5, help="rarer words become UNK")

    sub = command("build", _build, "pack images and tokenised captions into shards")
    sub.add_argument("--images", type=Path, required=True, help="folder of the image files")
    sub.add_argument("--annotations", type=Path, required=True, help="COCO caption file")
    sub.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    sub.add_argument("--out", type=Path, required=True, help="folder of the shards")
    sub.add_argument("--name", default="train", help="file name of the tars: NAME-000000.tar")
    sub.add_argument("--samples-per-shard", type=int, default=1000)
    sub.add_argument(
        "--resize-short",
        type=int,
        default=256,
        help="shrink larger pictures to this short side, in pixels; 0 keeps the original size. "
        "A JPEG that is not shrunk keeps its bytes; PNG, WEBP, CMYK and pictures that EXIF turns "
        "are encoded as upright RGB JPEG whatever their size",
    )
    sub.add_argument("--quality", type=int, default=90, help="JPEG quality of encoded pictures")
    sub.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    sub.add_argument("--max-bad", type=float, default=0.01, help="share that may be quarantined")
    sub.add_argument("--json", action="store_true", help="print the summary as JSON")

    sub = command("finalize", _finalize, "close a build whose every shard is done")
    sub.add_argument("dir", type=Path)
    sub.add_argument("--tokenizer", type=Path, required=True, help="the build's tokenizer.json")
    sub.add_argument("--max-bad", type=float, default=0.01, help="share that may be quarantined")

    sub = command("verify", _verify, "read a data set again, every byte, and name each fault")
    sub.add_argument("dir", type=Path)
    sub.add_argument("--json", action="store_true", help="print the faults as JSON")

    sub = command("show", _show, "print samples of a data set")
    sub.add_argument("dir", type=Path)
    sub.add_argument("--limit", type=int, default=3, help="how many samples")
    return parser


def _sample(arguments: Arguments) -> int:
    draw_data_set(
        arguments.out,
        arguments.images,
        arguments.seed,
        lambda pictures: tqdm(pictures, "drawing", unit=" pictures"),
    )
    print(f"{arguments.out}: {arguments.images:,} drawn pictures with five captions each")
    return 0


def _tokenizer(arguments: Arguments) -> int:
    records = read_coco(arguments.annotations)
    every = [caption for record in records for caption in record.captions]
    captions = [caption for caption in every if is_utf8(caption)]  # the build leaves these out too
    tokenizer = train_word_tokenizer(captions, arguments.min_count)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.out, tokenizer.to_str(pretty=True).encode())
    ids = [token for caption in captions for token in encode(tokenizer, caption)]
    num_skipped = len(every) - len(captions)
    print(
        f"{arguments.out}: {tokenizer.get_vocab_size():,} words of {len(captions):,} captions; "
        f"{ids.count(UNK) / max(len(ids), 1):.2%} of the {len(ids):,} tokens are UNK"
        + (f"; captions skipped, not UTF-8: {num_skipped:,}" if num_skipped else "")
    )
    return 0


def _build(arguments: Arguments) -> int:
    started = time.monotonic()
    jobs = _plan_jobs(arguments)
    num_records = sum(len(job.records) for job in jobs)
    finished = finished_shards(arguments.out, jobs[0].build, len(jobs))
    open_jobs = [job for job in jobs if job.number not in finished]
    num_finished = num_records - sum(len(job.records) for job in open_jobs)
    if open_jobs:
        # The manifest vouches for a whole data set: without every shard it must not stand.
        (arguments.out / MANIFEST).unlink(missing_ok=True)
    with tqdm(
        total=num_records, initial=num_finished, desc="packing", unit=" images", smoothing=0.1
    ) as bar:

        def show_done(num_done: int) -> None:
            bar.update(num_finished + num_done - bar.n)

        run_local(open_jobs, arguments.workers, show_done)
    manifest = finalize(arguments.out, arguments.tokenizer, arguments.max_bad)
    seconds = time.monotonic() - started
    _print_summary(
        arguments.out, manifest, num_records, num_records - num_finished, seconds, arguments.json
    )
    return 0


def _plan_jobs(arguments: Arguments) -> list[ShardJob]:
    if not arguments.images.is_dir():
        raise ValueError(f"{arguments.images}: no such folder of images")
    if arguments.workers < 1:
        raise ValueError(f"--workers must be 1 or more, not {arguments.workers}")
    if not arguments.name or not set(arguments.name) <= KEY_CHARACTERS:
        raise ValueError(f"--name must be of [0-9a-z_-], not {arguments.name!r}")
    load_tokenizer(arguments.tokenizer)  # a bad one is better found before the work than after
    records = read_coco(arguments.annotations)
    plan = plan_shards([record.key for record in records], arguments.samples_per_shard)
    policy = ImagePolicy(arguments.resize_short, arguments.quality)
    build = {
        "name": arguments.name,
        "image_policy": {"resize_short": policy.resize_short, "quality": policy.quality},
        "tokenizer_sha256": tokenizer_sha256(arguments.tokenizer),
        "source_sha256": source_sha256(arguments.annotations),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    return [
        ShardJob(
            images_dir=arguments.images,
            out_dir=arguments.out,
            tokenizer=arguments.tokenizer,
            name=arguments.name,
            number=number,
            num_shards=len(plan),
            policy=policy,
            build=build,
            records=tuple(records[position] for position in positions),
        )
        for number, positions in enumerate(plan)
    ]


def _print_summary(
    folder: Path,
    manifest: Manifest,
    num_records: int,
    num_packed: int,
    seconds: float,
    as_json: bool,
) -> None:
    lines = (folder / QUARANTINE).read_bytes().splitlines()  # str's would also split at U+2028
    reasons = Counter(json.loads(line)["reason"] for line in lines)
    summary: dict[str, Any] = {
        "images_in": num_records,
        "images_packed": manifest.num_samples,
        "captions": manifest.num_captions,
        "tokens": manifest.num_tokens,
        "unk_share": manifest.num_unk / max(manifest.num_tokens, 1),
        "quarantined": dict(sorted(reasons.items())),
        "shards": len(manifest.shards),
        "bytes": sum(shard.num_bytes for shard in manifest.shards),
        "seconds": round(seconds, 3),
        "images_per_s": round(num_packed / seconds, 1),
        "digest": manifest.digest,
    }
    if as_json:
        print(json.dumps(summary))
        return
    print(
        f"{folder}: {summary['images_packed']:,} of {num_records:,} images and "
        f"{summary['captions']:,} captions in {summary['shards']} shards, "
        f"{summary['bytes'] / 1e6:.1f} MB, {summary['images_per_s']:,} images/s\n"
        f"  tokens {summary['tokens']:,}, {summary['unk_share']:.2%} UNK; "
        f"digest {manifest.digest[:12]}"
    )
    for reason, count in reasons.most_common():
        print(f"  quarantined, {reason}: {count:,} ({folder / QUARANTINE} names them)")


def _finalize(arguments: Arguments) -> int:
    manifest = finalize(arguments.dir, arguments.tokenizer, arguments.max_bad)
    print(f"{arguments.dir}: {manifest.num_samples:,} images, digest {manifest.digest[:12]}")
    return 0


def _verify(arguments: Arguments) -> int:
    total = read_manifest(arguments.dir).num_samples
    with tqdm(total=total, desc="verifying", unit=" images") as bar:
        faults = []
        for num_checked, found in verify(arguments.dir):
            bar.update(num_checked)
            faults += found
    if arguments.json:
        print(json.dumps({"images": total, "faults": faults}))
    else:
        print("\n".join([*faults, f"{arguments.dir}: {total:,} images, {len(faults)} faults"]))
    return 1 if faults else 0


def _show(arguments: Arguments) -> int:
    print(show(arguments.dir, arguments.limit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
