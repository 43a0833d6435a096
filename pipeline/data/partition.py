"""Which rank reads which slots of a global batch, and how they form micro-batches.

B images a global batch, C streams, W ranks, A accumulation steps, M images a micro-batch
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data.sample_order import EMPTY_SLOT, Order, global_batch


def rank_of_slots(num_slots: int, world_size: int, streams: int) -> np.ndarray:
    """The rank that reads each slot of a global batch.

    If W divides C or C divides W, a rank reads slots of its own streams only, and consecutive
    ranks, which share a machine, read consecutive streams. Otherwise, and with one stream, slot i
    goes to rank i mod W; every rank may then need every shard.

    Args:
        num_slots: B; with several streams, a multiple of C.
        world_size: W.
        streams: C.
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
    """The slots of a global batch that one rank reads, as one micro-batch an accumulation step.

    `rank_of_slots` says which slots are the rank's; they stay in order. If W*A does not divide B,
    empty slots are added, so that all ranks have the same number of equally large micro-batches.

    Args:
        slots: (B, 2) int64, from `global_batch`.
        rank: of the process that reads them.
        world_size: W.
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
    """The streams that some ranks read together, for example all ranks of a machine.

    Args:
        ranks: those ranks.
        world_size: W.
        streams: C.
    Returns:
        Stream numbers in ascending order.
    """
    slots = np.arange(streams * world_size)
    theirs = np.isin(rank_of_slots(len(slots), world_size, streams), list(ranks))
    return sorted(set((slots[theirs] % streams).tolist()))


@dataclass(frozen=True, eq=False)
class MicroBatchSampler:
    """The micro-batches of one rank from a step to the end of the run.

    Each is an (M, 2) int64 array of epoch and sample number. A DataLoader with `batch_size=None`
    passes each array to a loader worker as one item. So the workers have no state: nothing needs to
    be set for an epoch or restored on resume.

    Args:
        order: the sample order.
        batch_size: B.
        num_slots: sequence positions that the whole run consumes; the last step may need only a
            part of its global batch.
        first_step: the step to begin with.
        rank: of this process.
        world_size: W.
        accumulation_steps: A.
    """

    order: Order
    batch_size: int
    num_slots: int
    first_step: int
    rank: int
    world_size: int
    accumulation_steps: int

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return -(-self.num_slots // self.batch_size)

    @property
    def micro_size(self) -> int:
        """Slots of a micro-batch: M."""
        return -(-self.batch_size // (self.world_size * self.accumulation_steps))

    def __len__(self) -> int:
        return (self.num_steps - self.first_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[np.ndarray]:
        for step in range(self.first_step, self.num_steps):
            slots = global_batch(self.order, step, self.batch_size, self.num_slots)
            yield from micro_batches(
                slots,
                self.rank,
                self.world_size,
                self.accumulation_steps,
                self.order.streams,
            )
