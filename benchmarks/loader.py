"""How fast images are loaded: random 224-px crops out of 256-px shards, by two processes.

    python benchmarks/loader.py [--peers PYTHON]

Side by side: Capstream's loader with its workers; the bare work of as many processes, decoding and
cropping JPEG bytes that lie in memory; webdataset's documented pipeline on the same tars; litdata
and MosaicML Streaming with the bare work's decoder, where a Python is named that has them.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.batches import BATCH_SIZE, MIN_CROP, SIZE, consume, decode_and_crop
from benchmarks.images import add_image_options, make_shards, trainer_batches
from benchmarks.peers import PEERS, Peers, add_peers_option, chosen_peers
from benchmarks.side_by_side import (
    Result,
    add_common_options,
    machine_facts,
    ratio,
    report,
    take_turns,
)
from pipeline.config.data import DataConfig
from pipeline.data.reader import ShardFolder
from pipeline.data.worker_processes import start_worker_server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_image_options(parser, samples=1500)
    parser.add_argument("--workers", type=int, default=2, help="processes of each variant")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each repetition")
    add_peers_option(parser)
    add_common_options(parser)
    arguments = parser.parse_args()
    facts = machine_facts()
    # All variants decode on one thread a process: set here, as workers are forked from this one.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    start_worker_server()  # as train.py does
    seconds, workers = arguments.seconds, arguments.workers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards, facts["images"] = make_shards(arguments, folder, 250, workers)
        jpegs = _all_jpegs(shards)
        variants: dict[str, Callable[[], Result]] = {
            "capstream": lambda: consume(_capstream(shards, workers), workers, seconds),
            "bare work": lambda: _bare_work(jpegs, workers, seconds),
            "webdataset": lambda: consume(webdataset_batches(shards, workers), workers, seconds),
        }
        peers = chosen_peers(arguments.peers, folder / "peers")
        if peers:
            facts.update(peers.store(shards))
            variants |= {title: _peer(peers, title, workers, seconds) for title in PEERS}
        measured = take_turns(variants, arguments.repetitions)
    facts["workers"] = workers
    ratios: dict[str, tuple[float, float | None]] = {
        "capstream / bare work": (ratio(measured, 0, 1), 0.85),
        "capstream / webdataset": (ratio(measured, 0, 2), 5.0),
    }
    if peers:
        ratios["capstream / litdata"] = (ratio(measured, 0, 3), 1.5)
        ratios["capstream / MosaicML Streaming"] = (ratio(measured, 0, 4), None)
    report(facts, measured, ratios, arguments.json)


def _peer(peers: Peers, title: str, workers: int, seconds: float) -> Callable[[], Result]:
    def measure() -> Result:
        rate, others = peers.run("rate", PEERS[title], workers=workers, seconds=seconds)
        return rate, others

    return measure


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


def _bare_work(jpegs: list[bytes], workers: int, seconds: float) -> Result:
    context = multiprocessing.get_context("fork")  # shares the images' bytes
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
    """Decode images into the same batch again and again; put images/s into `rates`."""
    random.seed(seed)
    batch = np.zeros((BATCH_SIZE, SIZE, SIZE, 3), dtype=np.uint8)
    barrier.wait()
    num_images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for row in batch:
            decode_and_crop(random.choice(jpegs), row)
        num_images += len(batch)
    rates.put(num_images / elapsed)


if __name__ == "__main__":
    main()
