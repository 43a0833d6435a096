"""Which rank reads what of a global batch: dealing it out, to ranks and to micro-batches.

B images a global batch, C streams, W ranks, A accumulation steps, M images a micro-batch
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data.sample_order import EMPTY_SLOT, Order, global_batch


def rank_of_slots(num_slots: int, world_size: int, streams: int) -> np.ndarray:
    """Which rank each slot of a global batch goes to.

    Where the ranks divide the streams, or the streams the ranks, a rank reads its own streams only;
    neighbouring ranks, which share a machine, read neighbouring ones. One stream is dealt out as
    slot i to rank i mod W, and so is a number of streams that fits the ranks in neither way: every
    rank may then need every shard.

    Args:
        num_slots: B, divisible by the streams where there are several.
    Returns:
        (B,) int64; no rank has more than ceil(B / W) slots.
    """
    slots = np.arange(num_slots)
    stream, turn = slots % streams, slots // streams
    if world_size % streams == 0:
        each = world_size // streams  # ranks a stream
        return stream * each + turn % each
    if streams % world_size == 0:
        return stream // (streams // world_size)
    return slots % world_size


def micro_batches(
    slots: np.ndarray, rank: int, world_size: int, steps: int, streams: int = 1
) -> list[np.ndarray]:
    """One rank's share of a global batch, cut into its accumulation steps.

    The slots of `rank_of_slots`, in order, M to a micro-batch. Where W*A does not divide B, empty
    slots fill up, so that every rank runs the same number of equally large micro-batches.

    Args:
        slots: (B, 2) of `global_batch`.
        steps: A.
        streams: C.
    Returns:
        A arrays, each (M, 2) int64 with M = ceil(B / (W*A)).
    """
    micro_size = -(-len(slots) // (world_size * steps))
    mine = np.full((steps * micro_size, 2), EMPTY_SLOT, dtype=np.int64)
    share = slots[rank_of_slots(len(slots), world_size, streams) == rank]
    mine[: len(share)] = share
    return list(mine.reshape(steps, micro_size, 2))


def streams_of_ranks(ranks: range, world_size: int, streams: int) -> list[int]:
    """The streams that some ranks, such as those of one machine, read between them."""
    slots = np.arange(streams * world_size)
    theirs = np.isin(rank_of_slots(len(slots), world_size, streams), list(ranks))
    return sorted(set((slots[theirs] % streams).tolist()))


@dataclass(frozen=True, eq=False)
class MicroBatchSampler:
    """Yields one rank's micro-batches from a step on, each an (M, 2) array of epoch and sample.

    A DataLoader with `batch_size=None` takes each as one item, so that its workers hold no state
    that would have to be told of the epoch or restored on resuming.
    """

    order: Order
    batch_size: int
    num_slots: int
    first_step: int
    last_step: int
    rank: int
    world_size: int
    accumulation_steps: int

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[np.ndarray]:
        for step in range(self.first_step, self.last_step):
            slots = global_batch(self.order, step, self.batch_size, self.num_slots)
            yield from micro_batches(
                slots,
                self.rank,
                self.world_size,
                self.accumulation_steps,
                self.order.streams,
            )
