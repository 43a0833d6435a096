"""The sample order: which samples make up each global batch, as pure functions of a few numbers.

    order = f(manifest digest, seed, epoch, shuffle block, streams, ALGORITHM)

In each epoch the shards are permuted and laid end to end. C canonical streams take equal contiguous
pieces of them. The shards of a stream are cut into shuffle blocks, and the samples of a block are
permuted. So any part of an epoch is computed from its own blocks alone.

The epochs follow each other in one endless sequence. Position p of it belongs to stream p mod C,
and global batch g is the piece [g*B, (g+1)*B). The numbers of processes, loader workers and
accumulation steps have no influence. Streams exist for object stores: a machine whose ranks have
streams of their own fetches the shards of those streams only.

    B images a global batch, C streams, N samples an epoch, S shards
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from typing import Self

import numpy as np

from pipeline.config.data import MAX_STREAMS
from shards.format.manifest import Manifest

# Version of the order, a part of every hash key. Raise it with any change that moves a sample, so
# that no run resumes in another order than it began with.
ALGORITHM = 1

EMPTY_SLOT = -1  # epoch and sample of a slot that only keeps the ranks in step: weight 0


@dataclass(frozen=True, eq=False)  # equal by identity, so that caches need not hash every shard
class Order:
    """What the order depends on.

    Args:
        shard_sizes: samples of each shard, in manifest order.
        digest: of the manifest; of features, that of the data set that was encoded.
        seed: of the run.
        shuffle_block: shards whose samples are mixed with each other.
        streams: C.
    """

    shard_sizes: tuple[int, ...]
    digest: str
    seed: int
    shuffle_block: int
    streams: int = 1

    @classmethod
    def of(cls, manifest: Manifest, seed: int, shuffle_block: int, streams: int = 1) -> Self:
        """The order of a data set."""
        sizes = tuple(shard.num_samples for shard in manifest.shards)
        return cls(sizes, manifest.order_digest, seed, shuffle_block, streams)

    @cached_property
    def shard_starts(self) -> np.ndarray:
        """(S + 1,) int64: the number of the first sample of each shard, and N."""
        return np.concatenate([[0], np.cumsum(self.shard_sizes, dtype=np.int64)])

    @property
    def num_samples(self) -> int:
        """Samples in an epoch: N."""
        return int(self.shard_starts[-1])

    @cached_property
    def block_samples(self) -> Callable[[int, int, int], np.ndarray]:
        """`_block_samples` of (epoch, stream, number), with a cache of the latest few.

        The streams advance together. Each needs its current block, and the next one when a batch
        crosses into it.
        """
        return lru_cache(maxsize=2 * self.streams + 2)(partial(_block_samples, self))


def keyed_bytes(num_bytes: int, *key: object) -> bytes:
    """Pseudo-random bytes that depend on the key alone.

    Source: SHAKE128, FIPS 202.
    """
    return hashlib.shake_128("\0".join(map(str, key)).encode()).digest(num_bytes)


def keyed_permutation(n: int, *key: object) -> np.ndarray:
    """A permutation of 0..n-1 that depends on (n, key) alone.

    The numbers are sorted by a keyed 64-bit hash; of two equal hashes (probability n**2 / 2**65)
    the lower number comes first. The hash is specified in a standard, whereas the stream of a
    library's random generator may change between versions.

    Returns:
        (n,) int64.
    """
    hashes = np.frombuffer(keyed_bytes(8 * n, n, *key), dtype="<u8")
    return np.argsort(hashes, kind="stable")


def global_batch(order: Order, step: int, batch_size: int, num_slots: int) -> np.ndarray:
    """The slots of one global batch.

    Args:
        order: the sample order.
        step: g, from 0.
        batch_size: B.
        num_slots: sequence positions that the whole run consumes.
    Returns:
        (B, 2) int64: epoch and sample number; EMPTY_SLOT twice for positions after the run's last.
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


def epoch_samples(order: Order, epoch: int, start: int, stop: int) -> np.ndarray:
    """Sample numbers at the positions [start, stop) of one epoch.

    Time and memory grow with the blocks that these positions lie in, not with the epoch.

    Returns:
        (stop - start,) int64, within 0..N-1.
    """
    samples = np.empty(max(stop - start, 0), dtype=np.int64)
    first = epoch * order.num_samples + start  # position in the endless sequence
    for stream in range(order.streams):
        begin, end = (
            _dealt(first + count, stream, order.streams)
            - _dealt(epoch * order.num_samples, stream, order.streams)
            for count in (0, len(samples))
        )
        own = samples[(stream - first) % order.streams :: order.streams]
        own[:] = _stream_samples(order, epoch, stream, begin, end)
    return samples


def _dealt(num_positions: int, stream: int, streams: int) -> int:
    """How many of the first `num_positions` of the endless sequence belong to a stream."""
    return (num_positions - stream + streams - 1) // streams


def _stream_samples(order: Order, epoch: int, stream: int, start: int, stop: int) -> np.ndarray:
    """Sample numbers at the positions [start, stop) of one stream of one epoch."""
    blocks = _blocks(order, epoch, stream)
    first_row = blocks[0].start
    starts = [block.start - first_row for block in blocks]
    parts = []
    number = int(np.searchsorted(starts, start, side="right")) - 1
    while start < stop:
        block_start, size = starts[number], len(blocks[number])
        if start < block_start + size:  # not so if all shards of the block are empty
            samples = order.block_samples(epoch, stream, number)
            parts.append(samples[start - block_start : stop - block_start])
            start = min(block_start + size, stop)
        number += 1
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


# "Rows" below are the positions of samples when the permuted shards of an epoch lie end to end.


@lru_cache(maxsize=4)
def _shard_permutation(order: Order, epoch: int) -> np.ndarray:
    return keyed_permutation(len(order.shard_sizes), *_key(order, epoch), "shards")


@lru_cache(maxsize=4)
def _shard_rows(order: Order, epoch: int) -> np.ndarray:
    """(S + 1,) int64: the row of the first sample of each permuted shard, and N."""
    sizes = np.diff(order.shard_starts)[_shard_permutation(order, epoch)]
    return np.concatenate([[0], np.cumsum(sizes)])


def _shard_groups(order: Order, epoch: int, stream: int) -> tuple[int, int, list[int]]:
    """Where a stream and its blocks begin and end.

    Returns:
        The first row of the stream, the row after its last, and the index in the shard permutation
        at which each block begins, with the index at which the last block ends.
    """
    base = epoch * order.num_samples
    lengths = [
        _dealt(base + order.num_samples, s, order.streams) - _dealt(base, s, order.streams)
        for s in range(order.streams)
    ]
    begin = sum(lengths[:stream])
    end = begin + lengths[stream]
    rows = _shard_rows(order, epoch)
    # A shard that crosses the boundary of two streams belongs to both, a part of it to each.
    first = int(np.searchsorted(rows, begin, side="right")) - 1 if stream else 0
    last_stream = stream == order.streams - 1
    last = len(rows) - 1 if last_stream else int(np.searchsorted(rows, end, side="left"))
    last = max(last, first)
    return begin, end, [*range(first, last, order.shuffle_block), last]


@lru_cache(maxsize=2 * MAX_STREAMS)
def _blocks(order: Order, epoch: int, stream: int) -> list[range]:
    """The rows of each block of a stream."""
    begin, end, groups = _shard_groups(order, epoch, stream)
    rows = _shard_rows(order, epoch)
    cuts = [min(max(int(rows[index]), begin), end) for index in groups]
    return [range(a, b) for a, b in pairwise(cuts)] or [range(begin, end)]


def _block_samples(order: Order, epoch: int, stream: int, number: int) -> np.ndarray:
    """The permuted sample numbers of a block."""
    rows = _blocks(order, epoch, stream)[number]
    first_rows, shards = _shard_rows(order, epoch), _shard_permutation(order, epoch)
    _, _, groups = _shard_groups(order, epoch, stream)
    parts = []
    for index in range(groups[number], groups[number + 1]):
        begin, end = max(first_rows[index], rows.start), min(first_rows[index + 1], rows.stop)
        if begin < end:
            shift = order.shard_starts[shards[index]] - first_rows[index]
            parts.append(np.arange(begin + shift, end + shift))
    samples = np.concatenate(parts)
    name = ("block", number) if order.streams == 1 else ("stream", order.streams, stream, number)
    return np.asarray(samples[keyed_permutation(len(samples), *_key(order, epoch), *name)])


def _key(order: Order, epoch: int) -> tuple[object, ...]:
    return ("capstream order", ALGORITHM, order.digest, order.seed, epoch, order.shuffle_block)


def shards_needed(order: Order, start: int, stop: int, streams: Sequence[int]) -> Iterator[int]:
    """The shards that some streams read at the positions [start, stop), in order of first use.

    The iterator computes blocks only as far as it is consumed.

    Args:
        order: the sample order.
        start: first position in the endless sequence.
        stop: the position after the last.
        streams: numbers of the streams; positions of other streams are left out.
    """
    starts = order.shard_starts
    num_shards = int(np.count_nonzero(order.shard_sizes))
    seen: set[int] = set()
    while start < stop and len(seen) < num_shards:
        epoch, offset = divmod(start, order.num_samples)
        count = min(stop - start, order.num_samples - offset, 4096)
        samples = epoch_samples(order, epoch, offset, offset + count)
        samples = samples[np.isin(np.arange(start, start + count) % order.streams, streams)]
        for shard in (np.searchsorted(starts, samples, side="right") - 1).tolist():
            if shard not in seen:
                seen.add(shard)
                yield shard
        start += count
