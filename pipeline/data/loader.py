"""Loader processes: which there are, how they start, how batches come from them."""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, forkserver
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pipeline.data.batch import Batch, EvalBatch
from pipeline.data.dataset import EvalDataset, TrainDataset
from pipeline.data.partition import MicroBatchSampler, streams_of_ranks
from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import shards_needed
from pipeline.data.shared_buffers import BatchInBuffer, SharedBuffers
from pipeline.remote.prefetch import read_ahead
from pipeline.runtime.preemption import STOP_SIGNALS
from pipeline.runtime.world import World

T = TypeVar("T")

PREFETCH = 4  # batches each loader process works ahead
EVAL_SHARDS = 4  # that an evaluation reads at once, its processes not being in step

# A plain fork of a training process copies locks that its other threads (gloo, OpenMP, tqdm) may
# hold at that moment, and the child then waits for ever: seen with two evaluating processes. The
# fork server has no such threads; it imports torch once, and its children start at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pipeline.data.worker_server", "pipeline.data.loader"])


def start_worker_server() -> None:
    """Start the process that loader processes are forked from, ahead of need: it imports torch."""
    forkserver.ensure_running()


@atexit.register
def _end_loader_processes() -> None:
    """At the end of a training process, whatever ended it.

    multiprocessing would ask them to end with SIGTERM, which they do not hear, and wait for ever.
    """
    for process in multiprocessing.active_children():
        process.kill()


def _tie_to_trainer(worker: int) -> None:
    """Make a loader process end with the training process and by nothing else.

    What is sent to the whole process group, the training process alone answers. If it is killed
    outright, nobody is left to end its loaders: they watch the pipe that its death closes.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    threading.Thread(target=_end_with, args=(trainer.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


class _WorkerDataset(Dataset[Any]):
    """A training set as the loader's processes see it: images go into shared buffers."""

    def __init__(self, dataset: TrainDataset, buffers: SharedBuffers) -> None:
        self.dataset = dataset
        self.buffers = buffers

    def __getitem__(self, slots: np.ndarray) -> Batch | BatchInBuffer:
        worker = get_worker_info()
        assert worker is not None
        buffer = self.buffers.take(worker.id)
        if buffer is None:  # someone keeps many batches: torch's own way always works
            return self.dataset[slots]
        batch = self.dataset.load(slots, self.buffers.pixels(buffer))
        return BatchInBuffer(
            self.buffers.number,
            buffer,
            batch.tokens.numpy(),
            batch.weights.numpy(),
            batch.ids,
            batch.bad,
        )


def train_loader(
    dataset: TrainDataset,
    sampler: MicroBatchSampler,
    world: World,
    workers: int,
    pin_memory: bool,
) -> Iterable[Batch]:
    """The run's one loader: it iterates from the first step to the last, epochs and all."""
    streams = streams_of_ranks(world.ranks_of_this_machine, world.world_size, sampler.order.streams)

    def needed(num_batches: int) -> Iterator[int]:
        step = sampler.first_step + num_batches // sampler.accumulation_steps
        start = step * sampler.batch_size
        stop = min(sampler.num_slots, start + sampler.order.num_samples)  # then all are known
        return shards_needed(sampler.order, start, stop, streams)

    loader = _train_batches(dataset, sampler, workers, pin_memory)
    return _fetching_ahead(loader, dataset.shards, world, needed)


def _fetching_ahead(
    loader: DataLoader[T],
    shards: ShardFolder,
    world: World,
    needed: Callable[[int], Iterable[int]],
) -> Iterable[T]:
    """One process of each machine reads ahead: its ranks need the same shards at about one time."""
    if shards.cache is None or not world.is_local_main:
        return loader
    return read_ahead(loader, shards.cache, needed)


def _train_batches(
    dataset: TrainDataset, sampler: MicroBatchSampler, workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    if workers == 0:
        return DataLoader(dataset, sampler=sampler, batch_size=None, pin_memory=pin_memory)
    size = dataset.config.image_size
    micro_size = -(-sampler.batch_size // (sampler.world_size * sampler.accumulation_steps))
    # Those ahead, and a worker's share of those that the consumer holds: two steps', as it lets go
    # of one only when it has the next.
    num_each = PREFETCH + -(-2 * sampler.accumulation_steps // workers)
    buffers = SharedBuffers((micro_size, size, size, 3), workers, num_each)
    return DataLoader(
        _WorkerDataset(dataset, buffers),
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCH,
        multiprocessing_context=CONTEXT,
        worker_init_fn=_tie_to_trainer,
    )


def eval_loader(
    dataset: EvalDataset,
    batch_size: int,
    world: World,
    workers: int,
    pin_memory: bool,
) -> Iterable[EvalBatch]:
    """One rank's share of a data set, each sample on exactly one rank, nothing padded."""
    samples = np.arange(world.rank, len(dataset.shards), world.world_size)
    batches = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]

    def needed(num_batches: int) -> Iterable[int]:
        sample = num_batches * batch_size * world.world_size
        starts = dataset.shards.index.shard_starts
        return range(int(np.searchsorted(starts, sample, side="right")) - 1, len(starts) - 1)

    loader = DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        num_workers=workers if batches else 0,
        pin_memory=pin_memory,
        multiprocessing_context=CONTEXT if workers and batches else None,
        worker_init_fn=_tie_to_trainer if workers else None,
    )
    return _fetching_ahead(loader, dataset.shards, world, needed)
