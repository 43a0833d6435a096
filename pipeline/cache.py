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
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import BinaryIO

from pipeline.exits import ExplainedError
from shards.atomic import fsync_folder
from shards.format import (
    INDEX,
    MANIFEST,
    TOKENIZER,
    Manifest,
    ShardEntry,
    check_index,
    read_manifest,
    write_manifest,
)
from shards.storage import (
    ATTEMPTS,
    DISK_FULL,
    LastingError,
    fetch,
    is_remote,
    location,
    persistently,
)

WAIT_S = 0.1  # between looks for room that others' downloads take


PATIENCE_S = 600.0  # with a store that does not answer, before a run is ended for it


class FetchError(ExplainedError, OSError):
    """A file of a data set cannot be had, or is another; the message says what to do."""


class _DiffersError(OSError):
    """What arrived is not what the manifest lists."""


@dataclass(frozen=True, eq=False)
class ShardCache:
    """The shards of one data set, on this machine while they are needed."""

    url: str  # folder of the data set
    folder: Path  # ROOT/DIGEST
    shards: tuple[ShardEntry, ...]
    max_bytes: int  # all shards under ROOT, those being fetched among them
    ahead_bytes: int  # what pipeline.ahead may keep there

    def open(self, number: int) -> int:
        """A descriptor of a shard, fetched first where it is not here. The caller closes it.

        Any processes and threads of the machine may ask at once: one fetches, the others wait. The
        descriptor stays good when the shard is evicted.

        Raises:
            FetchError: it cannot be fetched, or is not what the manifest lists.
        """
        shard = self.shards[number]
        path = self.folder / shard.file
        while (descriptor := _open_whole(path, shard.num_bytes)) is None:
            part = path.with_name(f".{path.name}.{shard.num_bytes}.part")
            claim = self._claim(path, part, shard.num_bytes)
            if claim is not None:
                with claim:
                    return self._fetch(shard, path, part)
            _wait_for(part)
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
        with _locked(root):
            fetching = _being_fetched(root)
            if part in fetching or path.exists():
                return None
            if not _make_room(root, self.max_bytes - num_bytes - sum(fetching.values())):
                return None
            file = open(part, "wb")  # noqa: SIM115  # the caller closes it
            fcntl.flock(file, fcntl.LOCK_EX)
            return file

    def _fetch(self, shard: ShardEntry, path: Path, part: Path) -> int:
        try:
            _fetch_verified(self.url, shard.file, part, shard.sha256, shard.num_bytes)
            descriptor = os.open(part, os.O_RDONLY)
            with _locked(path.parent.parent):  # so that nobody counts it under neither name
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


def _wait_for(part: Path) -> None:
    """Return when nobody fetches into `part`, or after a moment where nobody does."""
    try:
        with open(part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        time.sleep(WAIT_S)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
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


# --------------------------------------------------------------------------------------- downloads


def _fetch_verified(
    url: str, name: str, local: Path, sha256: str, num_bytes: int | None = None
) -> None:
    """Fetch the file `name` of a data set over `local`, and onto the disk.

    Raises:
        FetchError: it cannot be had, or not as the manifest lists it.
    """
    # Made here, where it is used: a store's connection does not survive a fork or a pickle.
    source = location(url) / name
    differing = count(1)

    def attempt() -> None:
        fetch(source, local)
        try:
            check()
        except _DiffersError as error:  # cut short, or replaced: more attempts than a few tell
            if next(differing) < ATTEMPTS:
                raise
            raise LastingError(str(error)) from error

    def check() -> None:
        with open(local, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if num_bytes not in (None, size):
                raise _DiffersError(f"{size:,} bytes, not the {num_bytes:,} of {MANIFEST}")
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise _DiffersError(f"sha256 {found}, not the {sha256} of {MANIFEST}")
            os.fsync(file.fileno())

    try:
        persistently(source, attempt, PATIENCE_S)
    except OSError as error:
        raise FetchError(_explain(source, local, error)) from error


def _explain(source: Path, local: Path, error: OSError) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, _DiffersError):
        return (
            f"{source}: has {cause}, at {ATTEMPTS} attempts: it was replaced or damaged after its "
            "data set was finished. Put the file of the manifest back and start the same command "
            "again, or train on the new data set with another run_dir"
        )
    if isinstance(cause, FileNotFoundError):
        return (
            f"{source}: is not there, but {MANIFEST} lists it. Put it back and start the same "
            "command again; `python -m shards verify` tells what else is missing"
        )
    if isinstance(cause, OSError) and cause.errno in DISK_FULL:
        return f"{local.parent}: the disk is full; lower cache_gb, or name another cache_dir"
    return f"{source}: cannot be fetched ({error}); the same command goes on when it can be again"


# ---------------------------------------------------------------------------------------- data sets


def local_folders(
    places: Sequence[tuple[str, int]], cache_dir: str | None, cache_gb: float, setting: str
) -> list[tuple[Path, ShardCache | None]]:
    """Where data sets lie on this machine: each one's folder, or for a URL its folder in the cache.

    The latter has manifest, index and tokenizer at once, the shards when they are opened.

    Args:
        places: path or URL of each, and how many of its shards are needed at once. The first has
            what room the others leave.
        cache_gb: 10**9 bytes that the shards under `cache_dir` may take.
        setting: what the user calls the two, without `_dir` and `_gb`.
    Raises:
        ValueError: no such data set, or the cache cannot be there or is too small; names the
            setting.
        OSError: the store does not answer.
    """
    max_bytes = int(cache_gb * 1e9)
    found = [_local_folder(place, cache_dir, max_bytes, setting) for place, _ in places]
    least = [
        _largest_bytes(cache.shards, num_shards) if cache else 0
        for (_, cache), (_, num_shards) in zip(found, places, strict=True)
    ]
    if sum(least) > max_bytes:
        raise ValueError(
            f"{setting}_gb: {cache_gb:g} GB cannot hold the shards that are needed at once (those "
            f"of two shuffle blocks in training); {_round_up_gb(sum(least))} is the least that "
            "works, more lets downloads run ahead"
        )
    spare, shared = max_bytes - sum(least), []
    for (folder, cache), share in zip(found, least, strict=True):
        if cache:
            cache, spare = replace(cache, ahead_bytes=share + spare), 0
        shared.append((folder, cache))
    return shared


def _largest_bytes(shards: Sequence[ShardEntry], num_shards: int) -> int:
    return sum(sorted((shard.num_bytes for shard in shards), reverse=True)[:num_shards])


def _round_up_gb(num_bytes: int) -> str:
    """To three digits, so that the number can be typed and suffices."""
    unit = 10 ** max(len(str(num_bytes)) - 3, 0)
    return f"{-(-num_bytes // unit) * unit / 1e9:.9f}".rstrip("0").rstrip(".")


def _local_folder(
    place: str, cache_dir: str | None, max_bytes: int, setting: str
) -> tuple[Path, ShardCache | None]:
    source = location(place)
    if not is_remote(source):
        return source, None
    manifest = read_manifest(source)
    folder = _cache_root(cache_dir, f"{setting}_dir") / manifest.digest
    folder.mkdir(exist_ok=True)
    with _locked(folder):
        if not (folder / MANIFEST).exists() or not _is_whole(folder, manifest):
            _fetch_index(place, manifest, folder)
    return folder, ShardCache(place, folder, manifest.shards, max_bytes, max_bytes)


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    try:
        check_index(folder, manifest)
    except (ValueError, OSError):
        return False
    return True


def _fetch_index(url: str, manifest: Manifest, folder: Path) -> None:
    """All that is needed to open a data set; the manifest comes last, and vouches for the rest."""
    for name, sha256 in ((INDEX, manifest.index_sha256), (TOKENIZER, manifest.tokenizer_sha256)):
        temporary = folder / f".{name}.tmp"
        _fetch_verified(url, name, temporary, sha256)
        os.replace(temporary, folder / name)
    fsync_folder(folder)
    write_manifest(folder, manifest)


def _check_own_folder(folder: Path, setting: str) -> None:
    """Make a folder where anyone may make one, and see that it is nobody else's trap.

    Raises:
        ValueError: it cannot be made, or is a link or another user's.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ValueError(f"{setting}: {folder}: {error.strerror}; name another folder") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ValueError(f"{setting}: {folder}: a link, or others may write to it; name another")


def _cache_root(cache_dir: str | None, setting: str) -> Path:
    """The cache's own folder, made if need be.

    Raises:
        ValueError: it cannot be made, or is another user's, who could change what is in it.
    """
    if cache_dir is None:  # not /tmp, which may lie in memory, nor the home, which machines share
        cache_dir = f"{os.environ.get('TMPDIR') or '/var/tmp'}/capstream-{os.getuid()}"
        _check_own_folder(Path(cache_dir), setting)
    root = Path(cache_dir) / "capstream-cache"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = root.stat().st_uid
        if owner == os.getuid():
            with _locked(root):
                pass
    except OSError as error:
        raise ValueError(f"{setting}: {root}: {error.strerror}; name another folder") from None
    if owner != os.getuid():
        raise ValueError(f"{setting}: {root}: belongs to another user; name another folder")
    return root
