"""Fetches shards into the cache shortly before they are needed, in threads beside a loader."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pipeline.remote.cache import ShardCache

PARALLEL = 4  # downloads at a time: one connection rarely fills the line
RENEW_S = 1.0  # between looks at what is needed next, at the least:
SHARE = 0.01  # of one core's time that they may take, which is the trainer's
IDLE_S = 0.1  # a thread that has nothing to fetch looks again after so long

T = TypeVar("T")


def read_ahead(
    batches: Iterable[T], cache: ShardCache, needed: Callable[[int], Iterable[int]]
) -> Iterator[T]:
    """`batches` as they are, while threads fetch the shards of those to come.

    An error of theirs ends nothing: whoever needs the shard meets it again, and raises it.

    Args:
        needed: of the number of batches handed out, the shards that the rest need, in order.
    """
    ahead = _Ahead(cache, needed)
    for _ in range(PARALLEL):  # no pool: at its end a process would wait for its downloads
        threading.Thread(target=ahead.run, daemon=True).start()
    try:
        for batch in batches:
            ahead.handed_out += 1
            yield batch
    finally:
        ahead.stopped = True


class _Ahead:
    """What the threads of `read_ahead` share."""

    def __init__(self, cache: ShardCache, needed: Callable[[int], Iterable[int]]) -> None:
        self.handed_out = 0
        self.stopped = False
        self._cache, self._needed = cache, needed
        self._lock = threading.Lock()
        self._window: list[int] = []  # shards to have here, in order of need
        self._window_of = -1  # batches handed out when it was made
        self._next_look = 0.0
        self._complete = False  # nothing of the window is missing
        self._tried: set[int] = set()  # of the window: under way, or failed
        self._failed: set[int] = set()  # those to be tried again with the next window

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
                continue  # still among those tried
            with self._lock:
                self._tried.discard(shard)

    def _next(self) -> int | None:
        """The first shard of the window that is missing and that no thread has tried."""
        with self._lock:
            now = time.monotonic()
            if self._window_of != self.handed_out and now > self._next_look:
                start_s = time.thread_time()
                self._window_of, self._complete = self.handed_out, False
                self._tried -= self._failed
                self._failed.clear()
                self._window = list(self._fitting())
                self._cache.expect(self._window)
                cost_s = time.thread_time() - start_s
                self._next_look = time.monotonic() + max(RENEW_S, cost_s / SHARE)
            if self._complete:
                return None
            for shard in self._window:
                if shard not in self._tried and not self._cache.holds(shard):
                    self._tried.add(shard)
                    return shard
            self._complete = True
        return None

    def _fitting(self) -> Iterator[int]:
        """What is needed next, as far as it fits: fetching evicts nothing that is needed sooner."""
        left = self._cache.ahead_bytes
        for shard in self._needed(self.handed_out):
            left -= self._cache.shards[shard].num_bytes
            if left < 0:
                return
            yield shard
