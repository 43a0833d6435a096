"""What each command of `python -m shards` does, from its arguments to what it prints."""

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from shards.atomic import remove_abandoned, write_atomic
from shards.build import ShardJob
from shards.executors import local_packers, run_local, run_ray, share_of
from shards.finalize import close_data_set, finalize
from shards.format.manifest import Manifest, read_manifest
from shards.format.names import MANIFEST
from shards.format.sidecar import Sidecar
from shards.images import ImagePolicy
from shards.index_tars import index_tars, is_foreign
from shards.jobs import check_unknown_words, open_jobs, plan_jobs
from shards.packer import Packer
from shards.report import make_report, report_lines, write_report
from shards.sample_data import draw_data_set
from shards.show import show, show_page
from shards.sources.read import Source, read_source
from shards.sources.record import is_utf8
from shards.storage import make_folder, persistently
from shards.tokenizer import (
    UNK,
    encode_all,
    load_tokenizer,
    train_bpe_tokenizer,
    train_word_tokenizer,
)
from shards.verify import verify


def sample(arguments: Namespace) -> int:
    """Draw the sample data set."""
    draw_data_set(
        arguments.out,
        arguments.images,
        arguments.seed,
        lambda numbers: tqdm(numbers, "drawing", unit=" images"),
    )
    print(f"{arguments.out}: {arguments.images:,} drawn images with five captions each")
    return 0


def tokenizer(arguments: Namespace) -> int:
    """Make a vocabulary."""
    if persistently(arguments.out, arguments.out.is_file):
        load_tokenizer(arguments.out)  # anything else is not to be replaced by mistake
    every = [caption for record in read_source(_source(arguments)) for caption in record.captions]
    captions = [caption for caption in every if is_utf8(caption)]  # the build leaves these out too
    if arguments.kind == "bpe":
        made = train_bpe_tokenizer(captions, arguments.min_count, arguments.vocab_size)
    else:
        made = train_word_tokenizer(captions, arguments.min_count)
    make_folder(arguments.out.parent)
    write_atomic(arguments.out, made.to_str(pretty=True).encode())
    ids = [token for tokens in encode_all(made, captions) for token in tokens]
    num_skipped = len(every) - len(captions)
    what = "pieces" if arguments.kind == "bpe" else "words"
    print(
        f"{arguments.out}: {made.get_vocab_size():,} {what} of {len(captions):,} captions; "
        f"{ids.count(UNK) / max(len(ids), 1):.2%} of the {len(ids):,} tokens are UNK"
        + (f"; captions skipped, not UTF-8: {num_skipped:,}" if num_skipped else "")
    )
    return 0


def build(arguments: Namespace) -> int:
    """Pack a data set, or one array member's share of it."""
    started = time.monotonic()
    in_array = arguments.job_count is not None
    if in_array != (arguments.job_index is not None):
        raise ValueError("--job_index and --job_count belong together")
    _check_options(arguments)
    # Processes start first: they load their libraries while the source is read.
    num_packers = arguments.workers if arguments.executor == "local" else 0
    try:
        with local_packers(num_packers) as packers:
            jobs = _plan(arguments)
            if in_array:
                jobs = share_of(jobs, arguments.job_index, arguments.job_count)
            num_packed = _pack(arguments, jobs, packers)
    finally:
        remove_abandoned(arguments.out)  # of processes that were ended amid their work
    images_per_s = num_packed / (time.monotonic() - started)
    if in_array:
        print(
            f"{arguments.out}: {len(jobs):,} shards of array member {arguments.job_index} are "
            f"done, {images_per_s:,.1f} images/s; `finalize` closes the data set"
        )
        return 0
    _close(arguments.out, arguments, images_per_s or None)
    return 0


def _pack(arguments: Namespace, jobs: list[ShardJob], packers: list[Packer]) -> int:
    """Do what is left of the jobs, with progress shown. Returns the number of records in it."""
    num_records = sum(len(job.records) for job in jobs)
    to_do = open_jobs(jobs)
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


def finish(arguments: Namespace) -> int:
    """Close a data set whose shards were packed by others."""
    _close(arguments.dir, arguments, None)
    return 0


def index(arguments: Namespace) -> int:
    """Index tars made by others."""
    folder: Path = arguments.dir
    manifest = folder / MANIFEST
    if persistently(manifest, manifest.exists) and not is_foreign(read_manifest(folder)):
        raise ValueError(f"{manifest}: of a build, which has its index; `finalize` makes it anew")
    with tqdm(desc="indexing", unit=" images") as bar:

        def shown() -> Iterator[Sidecar]:
            for sidecar in index_tars(folder, arguments.tokenizer):
                yield sidecar
                bar.update(sidecar.num_records)

        found = close_data_set(
            folder, shown(), arguments.tokenizer, arguments.max_rejected, arguments.max_unk
        )
    _report(folder, *found, None, arguments.json)
    return 0


def check(arguments: Namespace) -> int:
    """Verify a data set."""
    manifest = read_manifest(arguments.dir)
    total = manifest.num_samples
    with tqdm(total=total, desc="verifying", unit=" images") as bar:
        faults = []
        for num_checked, found in verify(arguments.dir, arguments.fast):
            bar.update(num_checked)
            faults += found
    if arguments.json:
        print(json.dumps({"images": total, "faults": faults}))
    else:
        print("\n".join([*faults, f"{arguments.dir}: {total:,} images, {len(faults)} faults"]))
        if faults and is_foreign(manifest):
            print(
                "A tar that is damaged or gone has to come from where it once came from; where the "
                "folder is as it should be, index it again."
            )
        elif faults:
            print("To mend a tar, remove it with its .json and run the same build again.")
    return 1 if faults else 0


def display(arguments: Namespace) -> int:
    """Show samples."""
    if arguments.html:
        if arguments.html.suffix != ".html":
            raise ValueError(f"--html {arguments.html}: name a .html file")
        page = show_page(arguments.dir, arguments.limit)
        make_folder(arguments.html.parent)
        write_atomic(arguments.html, page.encode())
        print(f"{arguments.html}: samples of {arguments.dir}")
    else:
        print(show(arguments.dir, arguments.limit))
    return 0


def _source(arguments: Namespace) -> Source:
    return Source(
        annotations=arguments.annotations,
        webdataset=arguments.webdataset,
        splits=tuple(arguments.split),
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
    )


def _check_options(arguments: Namespace) -> None:
    """What can be known to be wrong before anything is started."""
    if arguments.images and arguments.webdataset:
        raise ValueError("--webdataset holds its images; leave --images out")
    if not (arguments.images or arguments.webdataset):
        raise ValueError("say where the images are: --images FOLDER")
    if arguments.images and not persistently(arguments.images, arguments.images.is_dir):
        raise ValueError(f"{arguments.images}: no such folder of images")
    if arguments.out in (arguments.images, arguments.webdataset):
        raise ValueError(f"--out {arguments.out}: is the source; name a folder of its own")
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


def _close(folder: Path, arguments: Namespace, images_per_s: float | None) -> None:
    """Finalize a data set, and report on it."""
    found = finalize(folder, arguments.tokenizer, arguments.max_rejected, arguments.max_unk)
    _report(folder, *found, images_per_s, arguments.json)


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
