"""Prefetch: the shards needed next are fetched in order, and nothing twice."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cache_reader import is_right
from support.shard_server import Server, make_cache

from pipeline.config.data import DataConfig
from pipeline.data.dataset import TrainDataset
from pipeline.data.loader import train_loader
from pipeline.data.partition import MicroBatchSampler
from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import Order, shards_needed
from pipeline.remote.prefetch import prefetch_shards
from pipeline.runtime.world import World
from shards.format.manifest import read_manifest


def test_reading_ahead_fetches_in_order_and_nothing_twice(server: Server, tmp_path: Path) -> None:
    cache = make_cache(server, tmp_path / "cache", 3)
    order = [4, 2, 6, 0, 1]

    def batches() -> Iterator[int]:
        for number in order:
            assert is_right(cache, number)
            deadline = time.monotonic() + 30
            ahead = order[order.index(number) + 1 :][:1]
            while not all(cache.holds(shard) for shard in ahead):  # the next comes by itself
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield number

    assert list(prefetch_shards(batches(), cache, lambda done: order[done:])) == order
    fetched = [name for name in server.asked if name.endswith(".tar")]
    assert sorted(fetched) == sorted(cache.shards[number].file for number in order)
    assert set(fetched[:3]) == {cache.shards[number].file for number in order[:3]}


@pytest.mark.usefixtures("fast_retries")
def test_an_error_ahead_of_need_is_raised_at_need(server: Server, tmp_path: Path) -> None:
    cache = make_cache(server, tmp_path / "cache", 7)
    (server.folder / cache.shards[1].file).unlink()

    def batches() -> Iterator[bool]:
        yield is_right(cache, 0)
        while cache.shards[1].file not in server.asked:  # the thread has met it
            time.sleep(0.01)
        yield is_right(cache, 0)
        yield is_right(cache, 1)

    found = prefetch_shards(batches(), cache, lambda done: [0, 1])
    assert [next(found), next(found)] == [True, True]
    with pytest.raises(OSError, match="does not exist"):
        next(found)


def test_a_run_that_goes_on_fetches_nothing_of_what_is_behind_it(
    server: Server, tmp_path: Path
) -> None:
    cache = make_cache(server, tmp_path / "cache", 3)
    sizes = tuple(shard.num_samples for shard in cache.shards)
    order = Order(sizes, read_manifest(server.folder).digest, seed=0, shuffle_block=1)
    sampler = MicroBatchSampler(order, 5, 60, first_step=7, rank=0, world_size=1,
                                accumulation_steps=1)  # fmt: skip
    dataset = TrainDataset(
        ShardFolder(cache.folder, cache), DataConfig(image_size=32, workers=0), seed=0
    )
    batches = iter(train_loader(dataset, sampler, World(), [0], pin_memory=False))
    needed = [cache.shards[number].file for number in shards_needed(order, 35, 60, [0])]
    assert len(next(batches).ids) == 5
    assert {name for name in server.asked if name.endswith(".tar")} <= set(needed[:3])
    assert sum(len(batch.ids) for batch in batches) == 20
    fetched = [name for name in server.asked if name.endswith(".tar")]
    assert sorted(fetched) == sorted(needed)
    assert len(needed) < len(sizes)
