"""Prefetch: threads beside a loader fetch shards into the cache shortly before they are needed."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pipeline.remote.cache import ShardCache

PARALLEL = 4  # downloads at a time: one connection rarely uses the whole bandwidth
RENEW_S = 1.0  # least time between two computations of which shards come next
MAX_CPU_SHARE = 0.01  # of one core, that these computations may take; the trainer needs the rest
IDLE_S = 0.1  # a thread that has nothing to fetch waits this long before it looks again

T = TypeVar("T")


def prefetch_shards(
    batches: Iterable[T], cache: ShardCache, needed: Callable[[int], Iterable[int]]
) -> Iterator[T]:
    """Yield `batches` unchanged, while threads fetch the shards of the batches to come.

    An error in a thread is ignored: the process that reads the shard tries again and raises it.

    Args:
        batches: read their samples through the cache.
        cache: where the shards go, at most `cache.prefetch_bytes` of them in advance.
        needed: given the number of batches yielded so far, the shards that the remaining batches
            need, in order of first use.
    """
    prefetcher = _Prefetcher(cache, needed)
    for _ in range(PARALLEL):  # no pool, which would wait for its downloads when the process ends
        threading.Thread(target=prefetcher.run, daemon=True).start()
    try:
        for batch in batches:
            prefetcher.num_yielded += 1
            yield batch
    finally:
        prefetcher.stopped = True


class _Prefetcher:
    """The state that the threads of `prefetch_shards` share."""

    def __init__(self, cache: ShardCache, needed: Callable[[int], Iterable[int]]) -> None:
        self.num_yielded = 0  # batches
        self.stopped = False
        self._cache, self._needed = cache, needed
        self._lock = threading.Lock()
        self._window: list[int] = []  # shards to have in the cache, in order of need
        self._window_of = -1  # num_yielded when the window was computed
        self._next_renewal = 0.0  # on the monotonic clock
        self._complete = False  # no shard of the window is missing
        self._tried: set[int] = set()  # shards of the window that are being fetched, or failed
        self._failed: set[int] = set()  # of those tried; the next window tries them again

    def run(self) -> None:
        while not self.stopped:
            shard = self._next()
            if shard is None:
                time.sleep(IDLE_S)
                continue
            try:
                os.close(self._cache.open(shard))
            except OSError:
                with self._lock:
                    self._failed.add(shard)
                continue  # the shard stays among those tried
            with self._lock:
                self._tried.discard(shard)

    def _next(self) -> int | None:
        """The first missing shard of the window that no thread has tried."""
        with self._lock:
            now = time.monotonic()
            if self._window_of != self.num_yielded and now > self._next_renewal:
                start_s = time.thread_time()
                self._window_of, self._complete = self.num_yielded, False
                self._tried -= self._failed
                self._failed.clear()
                self._window = list(self._fitting())
                self._cache.expect(self._window)
                cost_s = time.thread_time() - start_s
                self._next_renewal = time.monotonic() + max(RENEW_S, cost_s / MAX_CPU_SHARE)
            if self._complete:
                return None
            for shard in self._window:
                if shard not in self._tried and not self._cache.holds(shard):
                    self._tried.add(shard)
                    return shard
            self._complete = True
        return None

    def _fitting(self) -> Iterator[int]:
        """The shards needed next that fit together, so that none evicts one needed sooner."""
        left = self._cache.prefetch_bytes
        for shard in self._needed(self.num_yielded):
            left -= self._cache.shards[shard].num_bytes
            if left < 0:
                return
            yield shard
