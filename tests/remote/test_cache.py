"""The cache of shards from afar: bounded, verified, and never in a reader's way."""

import fcntl
import functools
import hashlib
import http.server
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import Scenes
from support.cache_reader import fetch_only, is_right, read_many

import pipeline.remote.download
import shards.retry
from pipeline.config.data import DataConfig
from pipeline.config.parser import parse_config
from pipeline.data.dataset import TrainDataset
from pipeline.data.loader import train_loader
from pipeline.data.partition import MicroBatchSampler
from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import Order, shards_needed
from pipeline.remote.cache import ShardCache
from pipeline.remote.location import locate_data_sets
from pipeline.remote.prefetch import prefetch_shards
from pipeline.runtime.world import World
from pipeline.training.inputs import prepare
from shards.format.manifest import read_manifest

pytest.importorskip("upath", reason="universal_pathlib is not installed (the extra `remote`)")
pytest.importorskip("aiohttp", reason="aiohttp is not installed (the extra `remote`)")

SPAWN = multiprocessing.get_context("spawn")


class Server:
    """A web server of a folder on loopback. Any file's next answers can be spoiled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []  # names, in the order of their requests
        self.damage: dict[str, int] = {}  # name -> answers still to be damaged
        self.refusals: dict[str, int] = {}  # name -> answers still to be 503
        self.half_then_silent: set[str] = set()
        self.url = ""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    state = Server(folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            state.asked.append(path.name)
            if state.refusals.get(path.name, 0):
                state.refusals[path.name] -= 1
                self.send_error(503)
                return
            if not path.is_file():
                self.send_error(404)
                return
            data = bytearray(path.read_bytes())
            if state.damage.get(path.name, 0):
                state.damage[path.name] -= 1
                data[len(data) // 2] ^= 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if path.name in state.half_then_silent:
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                time.sleep(20)
                return
            self.wfile.write(data)

        def do_HEAD(self) -> None:
            self.send_error(405)  # all that is needed can be had by GET

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(scenes: Scenes, tmp_path: Path) -> Iterator[Server]:
    """The 7 shards of the drawn training images, free to be spoiled."""
    shutil.copytree(scenes.train, tmp_path / "afar")
    with serving(tmp_path / "afar") as state:
        yield state


@pytest.fixture
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.retry, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(pipeline.remote.download, "PATIENCE_S", 0.0)


def make_cache(server: Server, cache_dir: Path, num_shards: float) -> ShardCache:
    """A cache with room for so many of the largest shards."""
    largest = max(shard.num_bytes for shard in read_manifest(server.folder).shards)
    gb = num_shards * largest / 1e9
    [(_, cache)] = locate_data_sets([(server.url, 1)], str(cache_dir), gb, "data.cache")
    assert cache is not None
    return cache


def files_in(cache: ShardCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.suffix in (".tar", ".part"))


def bytes_on_disk(cache: ShardCache) -> int:
    """Of shards, with those that are being fetched counted whole, at one moment."""
    with open(cache.folder.parent / ".lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        tars = [path.stat().st_size for path in cache.folder.glob("*.tar")]
        parts = [int(path.name.split(".")[-2]) for path in cache.folder.glob(".*.part")]
    return sum(tars) + sum(parts)


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


@pytest.mark.usefixtures("fast_retries")
def test_a_damaged_download_is_fetched_again(server: Server, tmp_path: Path) -> None:
    cache = make_cache(server, tmp_path / "cache", 7)
    server.damage[cache.shards[2].file] = 3
    assert is_right(cache, 2)
    assert server.asked.count(cache.shards[2].file) == 4


@pytest.mark.usefixtures("fast_retries")
def test_a_server_that_refuses_for_a_moment_is_asked_again(server: Server, tmp_path: Path) -> None:
    names = ("manifest.json", "index.npz", "tokenizer.json", "train-000000.tar")
    server.refusals = dict.fromkeys(names, 2)
    cache = make_cache(server, tmp_path / "cache", 7)
    assert is_right(cache, 0)
    assert [server.asked.count(name) for name in names] == [3] * 4


@pytest.mark.usefixtures("fast_retries")
def test_a_store_that_is_away_for_long_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    attempts = shards.retry.ATTEMPTS
    cache = make_cache(server, tmp_path / "cache", 9)
    name = cache.shards[1].file
    server.refusals[name] = 3 * attempts
    with pytest.raises(OSError, match=rf"{name}.*failed {attempts} times.*503"):
        cache.open(1)
    monkeypatch.setattr(pipeline.remote.download, "PATIENCE_S", 600.0)
    monkeypatch.setattr(shards.retry, "REPORT_AFTER_S", 0.01)
    capfd.readouterr()
    os.close(cache.open(1))
    assert server.asked.count(name) == 3 * attempts + 1
    (line,) = capfd.readouterr().err.splitlines()
    assert name in line
    assert "retrying for up to 10 minutes" in line


@pytest.mark.usefixtures("fast_retries")
@pytest.mark.parametrize("longer", [b"", b"more"])
def test_a_replaced_object_is_named_and_never_let_in(
    server: Server, tmp_path: Path, longer: bytes
) -> None:
    cache = make_cache(server, tmp_path / "cache", 7)
    assert is_right(cache, 0)
    tar = server.folder / cache.shards[1].file
    tar.write_bytes(bytes(tar.stat().st_size) + longer)
    with pytest.raises(OSError, match=rf"{server.url}{tar.name}.*was replaced.*run_dir"):
        cache.open(1)
    assert files_in(cache) == [cache.shards[0].file]
    tar.unlink()
    with pytest.raises(OSError, match=rf"{server.url}{tar.name}: does not exist"):
        cache.open(1)


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


def test_a_cache_that_is_too_small_says_what_would_do(server: Server, tmp_path: Path) -> None:
    def open_with(gb: float) -> ShardCache | None:
        return locate_data_sets([(server.url, 4)], str(tmp_path), gb, "data.cache")[0][1]

    with pytest.raises(ValueError, match=r"data\.cache_gb: 1e-05 GB .* least") as raised:
        open_with(1e-5)
    least = float(str(raised.value).split("; ")[1].split()[0])
    cache = open_with(least)
    assert cache is not None
    assert sum(sorted(shard.num_bytes for shard in cache.shards)[-4:]) <= cache.max_bytes
    with pytest.raises(ValueError, match=r"data\.cache_gb"):
        open_with(least * 0.98)


def test_a_run_needs_room_for_two_shuffle_blocks(server: Server, tmp_path: Path) -> None:
    shards = read_manifest(server.folder).shards
    two_blocks = sum(sorted(shard.num_bytes for shard in shards)[-4:])
    flags = ["--data.train", server.url, "--data.cache_dir", str(tmp_path / "cache")]
    flags += ["--data.shuffle_block", "2", "--data.cache_gb", str((two_blocks - 1) / 1e9)]
    with pytest.raises(ValueError, match=r"data\.cache_gb: .*two shuffle blocks"):
        prepare(parse_config(flags), World())


def test_a_cache_folder_that_cannot_be_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data\.cache_dir: .*file"):
        make_cache(server, tmp_path / "file", 7)


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


def test_a_shard_folder_reads_the_same_through_the_cache(
    scenes: Scenes, server: Server, tmp_path: Path
) -> None:
    cache = make_cache(server, tmp_path / "cache", 2)
    near, afar = ShardFolder(scenes.train), ShardFolder(cache.folder, cache)
    assert afar.location == server.url
    for sample in np.random.default_rng(0).permutation(len(near))[:20].tolist():
        assert afar.read(sample) == near.read(sample)
    assert bytes_on_disk(cache) <= cache.max_bytes


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


def test_a_path_needs_no_cache(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scenes.train.parent)
    for place in (str(scenes.train), scenes.train.name, scenes.train.as_uri()):
        [(folder, cache)] = locate_data_sets([(place, 4)], None, 1e-9, "data.cache")
        assert cache is None
        assert folder.resolve() == scenes.train.resolve()
