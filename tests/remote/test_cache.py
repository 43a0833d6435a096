"""The cache of shards from afar: bounded, verified, and never in a reader's way."""

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from support.cache_reader import fetch_only, is_right, read_many
from support.shard_server import Server, bytes_on_disk, files_in, make_cache, serving
from support.shards import Scenes

from pipeline.data.reader import ShardFolder

SPAWN = multiprocessing.get_context("spawn")


def test_the_bound_holds_under_concurrent_fetchers(server: Server, tmp_path: Path) -> None:
    cache = make_cache(server, tmp_path / "cache", 2.5)
    results = SPAWN.Queue()
    readers = [SPAWN.Process(target=read_many, args=(cache, seed, results)) for seed in range(3)]
    for reader in readers:
        reader.start()
    most = 0
    while any(reader.is_alive() for reader in readers):
        most = max(most, bytes_on_disk(cache))
        time.sleep(0.001)
    assert [results.get(timeout=10) for _ in readers] == [True] * 3
    assert 0 < most <= cache.max_bytes
    assert len([name for name in server.asked if name.endswith(".tar")]) > len(cache.shards)


def test_processes_that_want_one_shard_fetch_it_once(server: Server, tmp_path: Path) -> None:
    cache = make_cache(server, tmp_path / "cache", 7)
    threads = [threading.Thread(target=fetch_only, args=(cache, 0)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked.count(cache.shards[0].file) == 1
    assert files_in(cache) == [cache.shards[0].file]


def test_what_a_kill_leaves_of_a_download_is_not_trusted(server: Server, tmp_path: Path) -> None:
    cache = make_cache(server, tmp_path / "cache", 7)
    server.half_then_silent.add(cache.shards[3].file)
    victim = SPAWN.Process(target=fetch_only, args=(cache, 3))
    victim.start()
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in cache.folder.glob(".*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    waiting = threading.Thread(target=fetch_only, args=(cache, 3))
    waiting.start()  # in the hope of the victim
    time.sleep(0.2)
    assert victim.pid is not None
    server.half_then_silent.clear()
    os.kill(victim.pid, signal.SIGKILL)
    waiting.join(timeout=30)
    assert is_right(cache, 3)
    assert files_in(cache) == [cache.shards[3].file]


def test_eviction_does_not_disturb_a_reader(server: Server, tmp_path: Path) -> None:
    cache = make_cache(server, tmp_path / "cache", 2)
    descriptor = cache.open(0)
    for number in (1, 2, 3):
        assert is_right(cache, number)
    assert not cache.holds(0)
    with open(descriptor, "rb") as file:
        assert hashlib.sha256(file.read()).hexdigest() == cache.shards[0].sha256
    assert is_right(cache, 0)
    assert server.asked.count(cache.shards[0].file) == 2


def test_what_a_power_cut_emptied_is_fetched_again(server: Server, tmp_path: Path) -> None:
    cache = make_cache(server, tmp_path / "cache", 7)
    os.close(cache.open(5))
    (cache.folder / cache.shards[5].file).write_bytes(b"")
    assert is_right(cache, 5)


def test_another_data_set_gives_way_and_never_mixes(
    server: Server, scenes: Scenes, tmp_path: Path
) -> None:
    cache = make_cache(server, tmp_path / "cache", 2)
    os.close(cache.open(0))
    with serving(scenes.val) as other:
        other_cache = make_cache(other, tmp_path / "cache", 1)
        assert other_cache.folder != cache.folder
        assert is_right(other_cache, 0)
    assert not cache.holds(0)


def test_a_shard_folder_reads_the_same_through_the_cache(
    scenes: Scenes, server: Server, tmp_path: Path
) -> None:
    cache = make_cache(server, tmp_path / "cache", 2)
    near, afar = ShardFolder(scenes.train), ShardFolder(cache.folder, cache)
    assert afar.location == server.url
    for sample in np.random.default_rng(0).permutation(len(near))[:20].tolist():
        assert afar.read(sample) == near.read(sample)
    assert bytes_on_disk(cache) <= cache.max_bytes
