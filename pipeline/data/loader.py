"""The loaders of training and evaluation: batches from loader workers, in a fixed order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pipeline.data.batch import Batch, EvalBatch
from pipeline.data.dataset import EvalDataset, TrainDataset
from pipeline.data.partition import MicroBatchSampler
from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import shards_needed
from pipeline.data.shared_buffers import BatchInBuffer, SharedBuffers
from pipeline.data.worker_processes import loader_options
from pipeline.remote.prefetch import prefetch_shards
from pipeline.runtime.world import World

T = TypeVar("T")

BATCHES_AHEAD = 4  # batches that each loader worker prepares in advance
EVAL_SHARDS = 4  # shards that an evaluation reads at once, as its ranks are not in step


def train_loader(
    dataset: TrainDataset,
    sampler: MicroBatchSampler,
    world: World,
    streams: Sequence[int],
    *,
    pin_memory: bool,
) -> Iterable[Batch]:
    """The loader of a run: one iteration goes from the first step to the last, across epochs.

    Args:
        dataset: its configuration says how many loader workers there are.
        sampler: this rank's micro-batches.
        world: local rank 0 prefetches the shards of a remote data set for all ranks of its machine.
        streams: the canonical streams that the ranks of this machine read.
        pin_memory: whether the batches are copied to pinned memory, for a GPU.
    """

    def needed(num_batches: int) -> Iterator[int]:
        step = sampler.first_step + num_batches // sampler.accumulation_steps
        start = step * sampler.batch_size
        # One epoch from there holds every shard.
        stop = min(sampler.num_slots, start + sampler.order.num_samples)
        return shards_needed(sampler.order, start, stop, streams)

    workers = dataset.config.workers
    loader: DataLoader[Batch] = DataLoader(
        _dataset_for_workers(dataset, sampler, workers) if workers else dataset,
        sampler=sampler,
        batch_size=None,
        pin_memory=pin_memory,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        **loader_options(workers),
    )
    return _with_prefetch(loader, dataset.shards, world, needed)


def eval_loader(
    dataset: EvalDataset, batch_size: int, world: World, workers: int, *, pin_memory: bool
) -> Iterable[EvalBatch]:
    """This rank's share of a data set: each sample is on exactly one rank, none is repeated.

    Args:
        dataset: the images to caption.
        batch_size: images of a batch; the last batch may have fewer.
        world: the rank and the number of ranks.
        workers: number of loader workers.
        pin_memory: whether the batches are copied to pinned memory, for a GPU.
    """
    samples = np.arange(world.rank, len(dataset.shards), world.world_size)
    batches = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]

    def needed(num_batches: int) -> Iterable[int]:
        sample = num_batches * batch_size * world.world_size
        starts = dataset.shards.index.shard_starts
        return range(int(np.searchsorted(starts, sample, side="right")) - 1, len(starts) - 1)

    loader: DataLoader[EvalBatch] = DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        pin_memory=pin_memory,
        **loader_options(workers if batches else 0),
    )
    return _with_prefetch(loader, dataset.shards, world, needed)


def _with_prefetch(
    loader: DataLoader[T],
    shards: ShardFolder,
    world: World,
    needed: Callable[[int], Iterable[int]],
) -> Iterable[T]:
    """Let local rank 0 prefetch the shards of a remote data set.

    The ranks of a machine need the same shards at about the same time.
    """
    if shards.cache is None or not world.is_local_main:
        return loader
    return prefetch_shards(loader, shards.cache, needed)


def _dataset_for_workers(
    dataset: TrainDataset, sampler: MicroBatchSampler, workers: int
) -> "_BufferedDataset":
    # Those prepared in advance, and a worker's share of the batches that the trainer holds. These
    # are two steps' batches, because it releases one step's when it has the next step's.
    num_each = BATCHES_AHEAD + -(-2 * sampler.accumulation_steps // workers)
    shards = dataset.shards
    shape = (sampler.micro_size, *shards.input_shape(dataset.config.image_size))
    return _BufferedDataset(dataset, SharedBuffers(shape, shards.input_dtype, workers, num_each))


class _BufferedDataset(Dataset[Any]):
    """A training data set in a loader worker, which writes the images into shared buffers."""

    def __init__(self, dataset: TrainDataset, buffers: SharedBuffers) -> None:
        self.dataset = dataset
        self.buffers = buffers

    def __getitem__(self, slots: np.ndarray) -> Batch | BatchInBuffer:
        worker = get_worker_info()
        assert worker is not None
        buffer = self.buffers.take(worker.id)
        if buffer is None:  # the consumer holds all of them; torch transfers this batch instead
            return self.dataset[slots]
        batch = self.dataset.load(slots, self.buffers.array(buffer))
        return BatchInBuffer(self.buffers, buffer, batch)
