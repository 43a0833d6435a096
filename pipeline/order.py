"""Who reads what, and when: the sample order as pure functions of five numbers.

    order = f(manifest digest, seed, epoch, shuffle block, ALGORITHM)

An epoch permutes the shards, cuts them into blocks, and permutes the samples inside each block, so
that any part of it is computed from its own block alone. Epochs follow each other in one endless
sequence, and global batch g is its piece [g*B, (g+1)*B): neither the number of processes nor that
of loader workers or accumulation steps has a say in it.

    B images a global batch, W ranks, A accumulation steps, M images a micro-batch
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Part of every key: raise it with any change that moves a sample, so that a run never resumes in
# an order other than the one it began with.
ALGORITHM = 1

EMPTY_SLOT = -1  # a slot that only keeps the ranks in step: weight 0


@dataclass(frozen=True, eq=False)  # equal by identity: caches below need not hash every shard
class Order:
    """What the order depends on."""

    shard_sizes: tuple[int, ...]  # samples of each shard, in manifest order
    digest: str  # of the manifest
    seed: int
    shuffle_block: int  # shards mixed with each other

    @property
    def num_samples(self) -> int:
        """Samples in an epoch."""
        return sum(self.shard_sizes)


def keyed_bytes(num_bytes: int, *key: object) -> bytes:
    """Pseudo-random bytes that depend on the key alone: SHAKE128, FIPS 202."""
    return hashlib.shake_128("\0".join(map(str, key)).encode()).digest(num_bytes)


def keyed_permutation(n: int, *key: object) -> np.ndarray:
    """A permutation of 0..n-1 that depends on (n, key) alone.

    Sorts the numbers by a keyed hash of 64 bits. Unlike a library's generator, whose stream may
    change between versions, the hash is specified; ties (n**2 in 2**65) fall to the lower number.

    Returns:
        (n,) int64.
    """
    hashes = np.frombuffer(keyed_bytes(8 * n, n, *key), dtype="<u8")
    return np.argsort(hashes, kind="stable")


def global_batch(order: Order, step: int, batch_size: int, num_slots: int) -> np.ndarray:
    """The slots of one global batch.

    Args:
        step: g, from 0.
        batch_size: B.
        num_slots: sequence positions the run consumes in all; a batch beyond is cut short.
    Returns:
        (B, 2) int64: epoch and sample number; EMPTY_SLOT twice past the end of the run.
    """
    slots = np.full((batch_size, 2), EMPTY_SLOT, dtype=np.int64)
    start, stop = step * batch_size, min((step + 1) * batch_size, num_slots)
    position = start
    while position < stop:
        epoch, offset = divmod(position, order.num_samples)
        count = min(stop - position, order.num_samples - offset)
        rows = slice(position - start, position - start + count)
        slots[rows, 0] = epoch
        slots[rows, 1] = epoch_samples(order, epoch, offset, offset + count)
        position += count
    return slots


def micro_batches(slots: np.ndarray, rank: int, world_size: int, steps: int) -> list[np.ndarray]:
    """One rank's share of a global batch, cut into its accumulation steps.

    Slot i goes to rank i mod W, and there to micro-batch (i div W) div M. Where W*A does not divide
    B, empty slots fill up, so that every rank runs the same number of equally large micro-batches.

    Args:
        slots: (B, 2) of `global_batch`.
        steps: A.
    Returns:
        A arrays, each (M, 2) int64 with M = ceil(B / (W*A)).
    """
    micro_size = -(-len(slots) // (world_size * steps))
    mine = np.full((steps * micro_size, 2), EMPTY_SLOT, dtype=np.int64)
    share = slots[rank::world_size]
    mine[: len(share)] = share
    return list(mine.reshape(steps, micro_size, 2))


def epoch_samples(order: Order, epoch: int, start: int, stop: int) -> np.ndarray:
    """Sample numbers at the positions [start, stop) of one epoch.

    Time and memory are those of the blocks touched, not of the epoch.

    Returns:
        (stop - start,) int64, within 0..num_samples-1.
    """
    block_starts = _block_starts(order, epoch)
    parts = []
    block = int(np.searchsorted(block_starts, start, side="right")) - 1
    while start < stop:
        first, last = int(block_starts[block]), int(block_starts[block + 1])
        if start < last:  # a block of empty shards holds nothing
            parts.append(_block_samples(order, epoch, block)[start - first : stop - first])
            start = min(last, stop)
        block += 1
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@lru_cache(maxsize=4)
def _shard_permutation(order: Order, epoch: int) -> np.ndarray:
    return keyed_permutation(len(order.shard_sizes), *_key(order, epoch), "shards")


@lru_cache(maxsize=4)
def _block_starts(order: Order, epoch: int) -> np.ndarray:
    """Position in the epoch where each block begins, and the end: (num_blocks + 1,) int64."""
    sizes = np.array(order.shard_sizes, dtype=np.int64)[_shard_permutation(order, epoch)]
    ends = np.concatenate([[0], np.cumsum(sizes)])
    return np.append(ends[: -1 : order.shuffle_block], ends[-1])


@lru_cache(maxsize=4)
def _block_samples(order: Order, epoch: int, block: int) -> np.ndarray:
    shards = _shard_permutation(order, epoch)[
        block * order.shuffle_block : (block + 1) * order.shuffle_block
    ]
    starts = np.concatenate([[0], np.cumsum(order.shard_sizes)])
    samples = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards])
    permutation = keyed_permutation(len(samples), *_key(order, epoch), "block", block)
    return np.asarray(samples[permutation])


def _key(order: Order, epoch: int) -> tuple[object, ...]:
    return ("capstream order", ALGORITHM, order.digest, order.seed, epoch, order.shuffle_block)


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
            yield from micro_batches(slots, self.rank, self.world_size, self.accumulation_steps)


def shards_needed(order: Order, start: int, stop: int) -> Iterator[int]:
    """The shards that the positions [start, stop) of the sequence read, in order of first need.

    Lazily: only the blocks of what is taken from it are computed.
    """
    starts = np.cumsum([0, *order.shard_sizes])
    num_shards = int(np.count_nonzero(order.shard_sizes))
    seen: set[int] = set()
    while start < stop and len(seen) < num_shards:
        epoch, offset = divmod(start, order.num_samples)
        count = min(stop - start, order.num_samples - offset, 4096)
        samples = epoch_samples(order, epoch, offset, offset + count)
        for shard in (np.searchsorted(starts, samples, side="right") - 1).tolist():
            if shard not in seen:
                seen.add(shard)
                yield shard
        start += count
