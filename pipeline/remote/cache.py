"""The cache of remote shards: verified shards in bounded space, shared by a machine's ranks.

    ROOT/                          data.cache_dir/capstream-cache; Capstream may delete its files
      .lock                        held while a process makes room or puts a file in its place
      DIGEST/                      of the manifest, so that other or changed data sets never mix
        manifest.json, tokenizer.json, index.npz
        NAME-000000.tar            whole and verified; the oldest mtime is evicted first
        .NAME-000000.tar.SIZE.part a download that its process has locked; counts as SIZE bytes

A lock ends with its process. So a download that a killed process left behind is recognised by its
missing lock; it is never used, and the next process that makes room removes it.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.remote.download import fetch_verified
from shards.format.manifest import ShardEntry

WAIT_S = 0.1  # between two checks whether other downloads have left room


@dataclass(frozen=True, eq=False)
class ShardCache:
    """The shards of one remote data set, kept on this machine while they are needed.

    Args:
        url: of the data set's folder.
        folder: ROOT/DIGEST.
        shards: of the manifest.
        max_bytes: limit for all shards under ROOT together, downloads in progress included.
        prefetch_bytes: limit for the shards that `pipeline.remote.prefetch` fetches in advance.
    """

    url: str
    folder: Path
    shards: tuple[ShardEntry, ...]
    max_bytes: int
    prefetch_bytes: int

    def open(self, number: int) -> int:
        """Open a shard for reading; fetch it first if it is not in the cache.

        Several processes and threads of the machine may ask for the same shard at once: one of them
        fetches it, the others wait.

        Args:
            number: of the shard in the manifest.
        Returns:
            A file descriptor, which the caller closes. It remains readable if the shard is evicted.
        Raises:
            FetchError: the shard cannot be fetched, or is not the one that the manifest lists.
        """
        shard = self.shards[number]
        path = self.folder / shard.file
        patience_s = None
        while (descriptor := _open_whole(path, shard.num_bytes)) is None:
            part = path.with_name(f".{path.name}.{shard.num_bytes}.part")
            claim = self._claim(path, part, shard.num_bytes)
            if claim is not None:
                with claim:
                    return self._fetch(shard, path, part, patience_s)
            if _wait_for(part):
                patience_s = 0.0  # the process that tried to fetch it has waited already
        return descriptor

    def holds(self, number: int) -> bool:
        """Whether a shard is in the cache at this moment."""
        return (self.folder / self.shards[number].file).exists()

    def expect(self, numbers: Sequence[int]) -> None:
        """Tell the cache which shards are needed next, in order of need.

        All other shards of the data set are evicted first, then the one that is needed latest.
        """
        now = time.time_ns()
        stamps = {self.shards[number].file: now - i for i, number in enumerate(numbers)}
        for path in self.folder.glob("*.tar"):
            stamp = stamps.get(path.name, 0)
            with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                os.utime(path, ns=(stamp, stamp))

    def _claim(self, path: Path, part: Path, num_bytes: int) -> BinaryIO | None:
        """Make room for a shard and create the locked file to fetch it into.

        Returns:
            The open file; None if the caller has to wait, because another process fetches the same
            shard or the downloads in progress leave no room.
        """
        root = self.folder.parent
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(root):
            fetching = _being_fetched(root)
            if part in fetching or path.exists():
                return None
            if not _make_room(root, self.max_bytes - num_bytes - sum(fetching.values())):
                return None
            file = open(part, "wb")  # noqa: SIM115  # the caller closes it
            fcntl.flock(file, fcntl.LOCK_EX)
            return file

    def _fetch(self, shard: ShardEntry, path: Path, part: Path, patience_s: float | None) -> int:
        try:
            fetch_verified(self.url, shard.file, part, shard.sha256, shard.num_bytes, patience_s)
            descriptor = os.open(part, os.O_RDONLY)
            # Without the lock, a process that adds up the sizes of all files could miss this one:
            # it may look for the .tar before the renaming and for the .part after it.
            with locked(path.parent.parent):
                os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return descriptor


def _open_whole(path: Path, num_bytes: int) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size != num_bytes:  # after a power cut: it was verified when fetched
        os.close(descriptor)
        path.unlink(missing_ok=True)
        return None
    os.utime(descriptor)
    return descriptor


def _wait_for(part: Path) -> bool:
    """Wait until nobody fetches into `part`, or for a moment. Returns whether somebody did."""
    try:
        with open(part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        time.sleep(WAIT_S)
        return False
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder during the block, against other processes and threads."""
    with open(folder / ".lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _being_fetched(root: Path) -> dict[Path, int]:
    """The downloads in progress, and the size that each will have. Removes abandoned ones."""
    found = {}
    for part in root.glob("*/.*.part"):
        try:
            with open(part, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                part.unlink()
        except FileNotFoundError:  # finished or given up meanwhile
            continue
        except BlockingIOError:
            found[part] = int(part.name.split(".")[-2])
    return found


def _make_room(root: Path, max_bytes: int) -> bool:
    """Evict the oldest shards until at most `max_bytes` remain. Returns whether that can be."""
    if max_bytes < 0:
        return False
    tars = []
    for path in root.glob("*/*.tar"):
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            tars.append((found.st_mtime_ns, found.st_size, path))
    total = sum(size for _, size, _ in tars)
    for _, size, path in sorted(tars):
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)  # processes that have it open can read on
        total -= size
    return True
