"""Shards behind a URL: fetched whole, verified, into a bounded cache that a machine's ranks share.

    ROOT/                          data.cache_dir/capstream-cache; all in it is ours to remove
      .lock                        held for the moment in which room is made or filled
      DIGEST/                      of a manifest: another data set, or a changed one, lies elsewhere
        manifest.json, tokenizer.json, index.npz
        NAME-000000.tar            whole and verified; its mtime says who is evicted first
        .NAME-000000.tar.SIZE.part being fetched by whoever has locked it; counts as SIZE bytes

A lock ends with its process: what a kill leaves of a download is never trusted, and the next that
looks for room removes it.
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
from shards.format import ShardEntry

WAIT_S = 0.1  # between looks for room that others' downloads take


@dataclass(frozen=True, eq=False)
class ShardCache:
    """The shards of one data set, on this machine while they are needed."""

    url: str  # folder of the data set
    folder: Path  # ROOT/DIGEST
    shards: tuple[ShardEntry, ...]
    max_bytes: int  # all shards under ROOT, those being fetched among them
    ahead_bytes: int  # what pipeline.remote.prefetch may keep there

    def open(self, number: int) -> int:
        """A descriptor of a shard, fetched first where it is not here. The caller closes it.

        Any processes and threads of the machine may ask at once: one fetches, the others wait. The
        descriptor stays good when the shard is evicted.

        Raises:
            FetchError: it cannot be fetched, or is not what the manifest lists.
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
                patience_s = 0.0  # whoever fetched it has been patient already
        return descriptor

    def holds(self, number: int) -> bool:
        """Whether a shard is here, for now."""
        return (self.folder / self.shards[number].file).exists()

    def expect(self, numbers: Sequence[int]) -> None:
        """Say which shards are needed next, the first one first.

        All others of the data set are evicted before them, and of them the last one first.
        """
        now = time.time_ns()
        stamps = {self.shards[number].file: now - i for i, number in enumerate(numbers)}
        for path in self.folder.glob("*.tar"):
            stamp = stamps.get(path.name, 0)
            with contextlib.suppress(FileNotFoundError):  # evicted just now
                os.utime(path, ns=(stamp, stamp))

    def _claim(self, path: Path, part: Path, num_bytes: int) -> BinaryIO | None:
        """A locked file to fetch into, with room made for it; None while there is a reason to wait.

        Either another fetches the same shard, or the downloads under way leave no room.
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
            with locked(path.parent.parent):  # so that nobody counts it under neither name
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
    if os.fstat(descriptor).st_size != num_bytes:  # a power cut: it was verified when it came
        os.close(descriptor)
        path.unlink(missing_ok=True)
        return None
    os.utime(descriptor)
    return descriptor


def _wait_for(part: Path) -> bool:
    """Return when nobody fetches into `part`, or after a moment; whether somebody did."""
    try:
        with open(part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        time.sleep(WAIT_S)
        return False
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, against other processes and threads, for the block."""
    with open(folder / ".lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _being_fetched(root: Path) -> dict[Path, int]:
    """Files that are being fetched into, and the bytes each will have. Removes abandoned ones."""
    found = {}
    for part in root.glob("*/.*.part"):
        try:
            with open(part, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                part.unlink()
        except FileNotFoundError:  # given up just now
            continue
        except BlockingIOError:
            found[part] = int(part.name.split(".")[-2])
    return found


def _make_room(root: Path, max_bytes: int) -> bool:
    """Evict what was needed longest ago until no more than `max_bytes` remain, if that can be."""
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
        path.unlink(missing_ok=True)  # who has it open reads on
        total -= size
    return True
