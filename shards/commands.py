"""The commands of `python -m shards`: from their arguments to what they print."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from shards.atomic import remove_abandoned, write_atomic
from shards.build import ShardJob
from shards.executors import local_packers, run_local, run_ray, share_of
from shards.finalize import close_data_set, finalize
from shards.format.features import feature_policy
from shards.format.manifest import Manifest, read_manifest
from shards.format.names import MANIFEST
from shards.format.sidecar import Sidecar
from shards.images import ImagePolicy
from shards.index_tars import index_tars, is_foreign
from shards.jobs import leave_tokenizer, open_jobs, plan_jobs
from shards.limits import check_unknown_words
from shards.messages import counted
from shards.packer import Packer
from shards.report import make_report, report_lines, write_report
from shards.retry import persistently
from shards.sample_data import draw_data_set
from shards.show import show, show_page
from shards.sources.read import Source, read_source
from shards.sources.record import is_utf8
from shards.split import Shares, deal, part_line, write_parts
from shards.storage import make_folder
from shards.tokenizer import (
    UNK,
    encode_all,
    load_tokenizer,
    train_bpe_tokenizer,
    train_word_tokenizer,
)
from shards.verify import verify


def run(arguments: Namespace) -> int:
    """Run the command that was parsed. Returns its exit code."""
    return {
        "sample": _sample,
        "split": _split,
        "tokenizer": _tokenizer,
        "build": _build,
        "finalize": _finalize,
        "index": _index,
        "verify": _verify,
        "show": _show,
    }[arguments.command](arguments)


def _sample(arguments: Namespace) -> int:
    draw_data_set(
        arguments.out,
        arguments.images,
        arguments.seed,
        lambda numbers: tqdm(numbers, "drawing", unit=" images"),
    )
    print(f"{arguments.out}: {counted(arguments.images, 'drawn image')} with five captions each")
    return 0


def _split(arguments: Namespace) -> int:
    shares = Shares(arguments.val, arguments.test, arguments.seed)
    parts = deal(arguments.annotations, arguments.image_column, shares)
    write_parts(arguments.annotations, arguments.out, parts, arguments.overwrite)
    if arguments.json:
        counts = {
            side: {"images": part.num_images, "captions": part.num_captions}
            for side, part in parts.items()
        }
        print(json.dumps(counts))
    else:
        lines = [part_line(arguments.annotations, side, part) for side, part in parts.items()]
        print("\n".join([f"{arguments.out}: {arguments.annotations} divided into", *lines]))
    return 0


def _tokenizer(arguments: Namespace) -> int:
    out: Path = arguments.out
    if persistently(out, out.is_dir):
        raise ValueError(
            f"--out {out}: is a folder; give a file name, such as {out}/tokenizer.json"
        )
    if persistently(out, out.is_file):
        load_tokenizer(out)  # refuses to replace a file that is not a tokenizer
    every = [caption for record in read_source(_source(arguments)) for caption in record.captions]
    captions = [caption for caption in every if is_utf8(caption)]  # `build` rejects the others too
    if arguments.kind == "bpe":
        made = train_bpe_tokenizer(
            captions, arguments.min_count, arguments.vocab_size, arguments.keep_case
        )
    else:
        made = train_word_tokenizer(captions, arguments.min_count, arguments.keep_case)
    make_folder(out.parent)
    write_atomic(out, made.to_str(pretty=True).encode())
    ids = [token for tokens in encode_all(made, captions) for token in tokens]
    unk_share = ids.count(UNK) / max(len(ids), 1)
    num_skipped = len(every) - len(captions)
    entries = "piece" if arguments.kind == "bpe" else "word"
    print(
        f"{out}: {counted(made.get_vocab_size(), entries)} from "
        f"{counted(len(captions), 'caption')}; {unk_share:.2%} of the {len(ids):,} tokens are UNK"
        + (f"; captions skipped, not UTF-8: {num_skipped:,}" if num_skipped else "")
    )
    if unk_share > arguments.max_unk:
        print(
            f"warning: {unk_share:.1%} of the tokens are UNK, more than --max_unk "
            f"{arguments.max_unk:.1%}, so `build` will refuse this tokenizer; use a --min_count "
            f"below {arguments.min_count}, or --kind bpe",
            file=sys.stderr,
        )
    return 0


def _build(arguments: Namespace) -> int:
    """Pack a data set, or the share of one member of a job array."""
    started = time.monotonic()
    in_array = arguments.job_count is not None
    if in_array != (arguments.job_index is not None):
        raise ValueError("--job_index and --job_count must be given together")
    _check_options(arguments)
    # The packing processes start first: they load their libraries while the source is read.
    num_packers = arguments.workers if arguments.executor == "local" else 0
    try:
        with local_packers(num_packers) as packers:
            jobs = _plan(arguments)
            if in_array:
                jobs = share_of(jobs, arguments.job_index, arguments.job_count)
            num_packed = _pack(arguments, jobs, packers)
    finally:
        remove_abandoned(arguments.out)  # temporary files of processes that were killed
    images_per_s = num_packed / (time.monotonic() - started)
    if in_array:
        print(
            f"{arguments.out}: {counted(len(jobs), 'shard')} of array member "
            f"{arguments.job_index} packed, {images_per_s:,.1f} images/s; once all members are "
            f"done, run `python -m shards finalize {arguments.out}`"
        )
        return 0
    found = finalize(arguments.out, arguments.tokenizer, arguments.max_rejected, arguments.max_unk)
    _report(arguments.out, *found, images_per_s or None, arguments.json)
    return 0


def _check_options(arguments: Namespace) -> None:
    """Refuse what is known to be wrong before anything starts."""
    images, webdataset = arguments.images, arguments.webdataset
    if images and webdataset:
        raise ValueError("--webdataset holds its own images; leave --images out")
    if not (images or webdataset):
        raise ValueError("give the image folder with --images")
    if images and not persistently(images, images.is_dir):
        wrong = "is a file, not a folder" if images.exists() else "no such folder of images"
        raise ValueError(f"--images {images}: {wrong}")
    if arguments.out in (images, webdataset):
        raise ValueError(f"--out {arguments.out}: is the source; give a folder of its own")
    ImagePolicy(arguments.resize_short, arguments.quality)


def _plan(arguments: Namespace) -> list[ShardJob]:
    vocabulary = load_tokenizer(arguments.tokenizer)
    jobs = plan_jobs(
        read_source(_source(arguments)),
        arguments.images or arguments.webdataset,
        arguments.out,
        arguments.tokenizer,
        arguments.name,
        ImagePolicy(arguments.resize_short, arguments.quality),
        arguments.samples_per_shard,
    )
    check_unknown_words(jobs, vocabulary, arguments.tokenizer, arguments.max_unk)
    make_folder(arguments.out)
    remove_abandoned(arguments.out)
    return jobs


def _pack(arguments: Namespace, jobs: list[ShardJob], packers: list[Packer]) -> int:
    """Pack the shards that are missing, with a progress bar. Returns their number of records."""
    num_records = sum(len(job.records) for job in jobs)
    to_do = open_jobs(jobs)
    if jobs:  # and so the folder is known to be of this build
        leave_tokenizer(arguments.out, arguments.tokenizer)
    num_to_do = sum(len(job.records) for job in to_do)
    num_finished = num_records - num_to_do
    with tqdm(
        total=num_records, initial=num_finished, desc="packing", unit=" images", smoothing=0.1
    ) as bar:

        def show_done(num_done: int) -> None:
            bar.update(num_finished + num_done - bar.n)

        if packers:
            run_local(to_do, packers, show_done)
        else:
            run_ray(to_do, arguments.ray_address, show_done)
    return num_to_do


def _finalize(arguments: Namespace) -> int:
    found = finalize(arguments.dir, arguments.tokenizer, arguments.max_rejected, arguments.max_unk)
    _report(arguments.dir, *found, None, arguments.json)
    return 0


def _index(arguments: Namespace) -> int:
    folder: Path = arguments.dir
    manifest = folder / MANIFEST
    if persistently(manifest, manifest.exists) and not is_foreign(read_manifest(folder)):
        raise ValueError(
            f"{manifest}: belongs to a build, which has an index; write it again with `finalize`"
        )
    with tqdm(desc="indexing", unit=" images", delay=1) as bar:

        def shown() -> Iterator[Sidecar]:
            for sidecar in index_tars(folder, arguments.tokenizer):
                yield sidecar
                bar.update(sidecar.num_records)

        found = close_data_set(
            folder, shown(), arguments.tokenizer, arguments.max_rejected, arguments.max_unk
        )
    _report(folder, *found, None, arguments.json)
    return 0


def _report(
    folder: Path,
    manifest: Manifest,
    sidecars: list[Sidecar],
    images_per_s: float | None,
    as_json: bool,
) -> None:
    report = make_report(manifest, sidecars, images_per_s)
    write_report(folder, report)
    print(json.dumps(report) if as_json else "\n".join(report_lines(folder, report)))


def _verify(arguments: Namespace) -> int:
    manifest = read_manifest(arguments.dir)
    total = manifest.num_samples
    with tqdm(total=total, desc="verifying", unit=" images") as bar:
        faults = []
        for num_checked, found in verify(arguments.dir, arguments.fast):
            bar.update(num_checked)
            faults += found
    if arguments.json:
        print(json.dumps({"images": total, "faults": faults}))
        return 1 if faults else 0
    summary = f"{arguments.dir}: {counted(total, 'image')}, {counted(len(faults), 'fault')}"
    print("\n".join([*faults, summary]))
    if faults and is_foreign(manifest):
        print(
            "Get a fresh copy of each damaged or missing tar. If the folder is as you want it, "
            "index it again."
        )
    elif faults:
        command = (
            "python -m pipeline.features" if feature_policy(manifest.image_policy) else "build"
        )
        print(f"To repair a shard, remove its .tar and .json and run the same {command} again.")
    return 1 if faults else 0


def _show(arguments: Namespace) -> int:
    if not arguments.html:
        print(show(arguments.dir, arguments.limit))
        return 0
    if arguments.html.suffix != ".html":
        raise ValueError(f"--html {arguments.html}: must end in .html")
    page = show_page(arguments.dir, arguments.limit)
    make_folder(arguments.html.parent)
    write_atomic(arguments.html, page.encode())
    print(f"{arguments.html}: samples of {arguments.dir}")
    return 0


def _source(arguments: Namespace) -> Source:
    return Source(
        annotations=tuple(arguments.annotations),
        webdataset=arguments.webdataset,
        splits=tuple(arguments.split),
        image_column=arguments.image_column,
        caption_columns=tuple(arguments.caption_column) or Source.caption_columns,
        images_dir=getattr(arguments, "images", None),
    )
