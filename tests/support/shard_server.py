"""A web server of shards on loopback whose answers can be spoiled, and caches in front of it."""

import fcntl
import functools
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.remote.cache import ShardCache
from pipeline.remote.location import locate_data_sets
from shards.format.manifest import read_manifest


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
