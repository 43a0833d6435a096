"""How fast pictures are loaded: random 224-px crops out of 256-px shards, by two processes.

    python benchmarks/loader.py

Side by side: Capstream's loader with its workers; the bare work of as many processes, decoding and
cropping JPEG bytes that lie in memory; webdataset's documented pipeline on the same tars.
"""

import argparse
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import simplejpeg
import torch
import webdataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.pictures import add_picture_options, make_shards, trainer_batches
from benchmarks.side_by_side import (
    Result,
    add_common_options,
    machine_facts,
    ratio,
    report,
    take_turns,
)
from pipeline.config import DataConfig
from pipeline.data import ShardFolder
from pipeline.loader import start_worker_server

BATCH_SIZE = 48
SIZE = 224
MIN_CROP = 0.875
WARM_UP_BATCHES = 24  # more than lie ready when a loader has filled its queues


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_picture_options(parser, samples=1500)
    parser.add_argument("--workers", type=int, default=2, help="processes of each variant")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each repetition")
    add_common_options(parser)
    arguments = parser.parse_args()
    facts = machine_facts()
    # All variants decode on one thread a process: set here, as workers are forked from this one.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    start_worker_server()  # as train.py does
    seconds, workers = arguments.seconds, arguments.workers
    with tempfile.TemporaryDirectory() as folder:
        shards, facts["pictures"] = make_shards(arguments, Path(folder), 250, workers)
        jpegs = _all_jpegs(shards)
        measured = take_turns(
            {
                "capstream": lambda: _consume(_capstream(shards, workers), workers, seconds),
                "bare work": lambda: _bare_work(jpegs, workers, seconds),
                "webdataset": lambda: _consume(
                    webdataset_batches(shards, workers), workers, seconds
                ),
            },
            arguments.repetitions,
        )
    facts["workers"] = workers
    ratios = {
        "capstream / bare work": (ratio(measured, 0, 1), 0.6),
        "capstream / webdataset": (ratio(measured, 0, 2), 3.0),
    }
    report(facts, measured, ratios, arguments.json)


def _all_jpegs(shards: Path) -> list[bytes]:
    folder = ShardFolder(shards)
    return [folder.read(sample)[1] for sample in range(len(folder))]


def _capstream(shards: Path, workers: int) -> Iterator[int]:
    """Batch sizes, as the trainer's own loader delivers the batches."""
    config = DataConfig(
        image_size=SIZE, min_crop=MIN_CROP, global_batch_size=BATCH_SIZE, workers=workers
    )
    for batch in trainer_batches(ShardFolder(shards), config):
        yield len(batch.images)


def webdataset_batches(shards: Path, workers: int) -> Iterator[int]:
    """Batch sizes out of webdataset's documented training pipeline.

    A plain crop, which needs no resizing, is the cheapest of the augmentations that its
    documentation shows; and the main process does not batch anew.
    """
    augment = transforms.Compose(
        [
            transforms.RandomCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    tars = sorted(map(str, shards.glob("*.tar")))
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=len(tars))
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "json")
        .map_tuple(augment, lambda meta: meta)
        .batched(BATCH_SIZE)
        .repeat()
    )
    for images, _ in webdataset.WebLoader(dataset, batch_size=None, num_workers=workers):
        yield len(images)


def _consume(batches: Iterator[int], workers: int, seconds: float) -> Result:
    """Take batches as fast as they come, once the first, made beforehand, are gone."""
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    num_images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        num_images += next(batches)
    processes = psutil.Process().children(recursive=True)  # also the server that forks ours
    processes.sort(key=psutil.Process.create_time)
    private = statistics.median(p.memory_full_info().uss for p in processes[-workers:])
    batches.close()  # ends the workers
    return num_images / elapsed, {"private MB a worker": private / 1e6}


def _bare_work(jpegs: list[bytes], workers: int, seconds: float) -> Result:
    context = multiprocessing.get_context("fork")  # shares the pictures' bytes
    rates = context.SimpleQueue()
    barrier = context.Barrier(workers)
    processes = [
        context.Process(target=_decode_and_crop, args=(jpegs, seed, seconds, barrier, rates))
        for seed in range(workers)
    ]
    for process in processes:
        process.start()
    rate = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    return rate, {}


def _decode_and_crop(
    jpegs: list[bytes], seed: int, seconds: float, barrier: Any, rates: Any
) -> None:
    """Decode pictures into the same batch again and again; put images/s into `rates`."""
    draw = random.Random(seed)
    batch = np.zeros((BATCH_SIZE, SIZE, SIZE, 3), dtype=np.uint8)
    barrier.wait()
    num_images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for row in batch:
            jpeg = draw.choice(jpegs)
            pixels = simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=True, fastupsample=True)
            height, width = pixels.shape[:2]
            side = round(min(height, width) * draw.uniform(MIN_CROP, 1.0))
            top, left = draw.randint(0, height - side), draw.randint(0, width - side)
            crop = pixels[top : top + side, left : left + side]
            cv2.resize(crop, (SIZE, SIZE), dst=row, interpolation=cv2.INTER_LINEAR)
        num_images += len(batch)
    rates.put(num_images / elapsed)


if __name__ == "__main__":
    main()
