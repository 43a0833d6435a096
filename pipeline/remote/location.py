"""Where a data set lies on this machine: its own folder, or a cache folder if it is remote."""

import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.remote.cache import ShardCache, locked
from pipeline.remote.download import fetch_verified
from shards.atomic import fsync_folder
from shards.format.manifest import Manifest, ShardEntry, check_index, read_manifest, write_manifest
from shards.format.names import INDEX, MANIFEST, TOKENIZER
from shards.storage import is_remote, location


def locate_data_sets(
    needed: Sequence[tuple[str, int]], cache_dir: str | None, cache_gb: float, option: str
) -> list[tuple[Path, ShardCache | None]]:
    """Find the folder of each data set on this machine: its own folder, or its cache folder.

    The manifest, index and tokenizer of a remote data set are fetched here; each of its shards is
    fetched when `ShardCache.open` is asked for it.

    Args:
        needed: path or URL of each data set, and how many of its shards must be in the cache at
            once. The first remote one may prefetch into the space that these leave.
        cache_dir: folder of the cache; None chooses a folder of this user.
        cache_gb: limit of the shards in the cache, in 10**9 bytes.
        option: the user's name for the two options, without `_dir` and `_gb`; for errors.
    Returns:
        For each data set its folder, and for a remote one the cache of its shards.
    Raises:
        ValueError: there is no such data set, or the cache cannot be created or is too small.
        OSError: the store does not answer.
    """
    max_bytes = int(cache_gb * 1e9)
    found = [_locate(url, cache_dir, max_bytes, option) for url, _ in needed]
    least = [
        _largest_bytes(cache.shards, num_shards) if cache else 0
        for (_, cache), (_, num_shards) in zip(found, needed, strict=True)
    ]
    if sum(least) > max_bytes:
        raise ValueError(
            f"{option}_gb: {cache_gb:g} GB is too small for the shards that are needed at once "
            f"(in training those of two shuffle blocks of each stream that this machine reads); "
            f"{_round_up_gb(sum(least))} is the least that works, and a larger cache allows "
            "prefetch"
        )
    spare = max_bytes - sum(least)
    located = []
    for (folder, cache), num_bytes in zip(found, least, strict=True):
        if cache:
            cache, spare = replace(cache, prefetch_bytes=num_bytes + spare), 0
        located.append((folder, cache))
    return located


def _largest_bytes(shards: Sequence[ShardEntry], num_shards: int) -> int:
    return sum(sorted((shard.num_bytes for shard in shards), reverse=True)[:num_shards])


def _round_up_gb(num_bytes: int) -> str:
    """A number of bytes in GB, rounded up to three digits for the user to type."""
    unit = 10 ** max(len(str(num_bytes)) - 3, 0)
    return f"{-(-num_bytes // unit) * unit / 1e9:.9f}".rstrip("0").rstrip(".")


def _locate(
    url: str, cache_dir: str | None, max_bytes: int, option: str
) -> tuple[Path, ShardCache | None]:
    source = location(url)
    if not is_remote(source):
        return source, None
    manifest = read_manifest(source)
    folder = _cache_root(cache_dir, f"{option}_dir") / manifest.digest
    folder.mkdir(exist_ok=True)
    with locked(folder):
        if not (folder / MANIFEST).exists() or not _is_whole(folder, manifest):
            _fetch_index(url, manifest, folder)
    return folder, ShardCache(url, folder, manifest.shards, max_bytes, max_bytes)


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    try:
        check_index(folder, manifest)
    except (ValueError, OSError):
        return False
    return True


def _fetch_index(url: str, manifest: Manifest, folder: Path) -> None:
    """Fetch the files that opening a data set needs.

    The manifest is written last. If it is there, the other files are complete.
    """
    for name, sha256 in ((INDEX, manifest.index_sha256), (TOKENIZER, manifest.tokenizer_sha256)):
        temporary = folder / f".{name}.tmp"
        fetch_verified(url, name, temporary, sha256)
        os.replace(temporary, folder / name)
    fsync_folder(folder)
    write_manifest(folder, manifest)


def _make_private_folder(folder: Path, option: str) -> None:
    """Make a folder in a place where every user may write, and check that nobody else controls it.

    Raises:
        ValueError: the folder cannot be made, is a link, or others may write to it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ValueError(f"{option}: {folder}: {error.strerror}; name another folder") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ValueError(
            f"{option}: {folder}: is a link, or other users may write to it; name another folder"
        )


def _cache_root(cache_dir: str | None, option: str) -> Path:
    """The root folder of the cache; it is made if it does not exist.

    Raises:
        ValueError: the folder cannot be made, or belongs to another user, who could change it.
    """
    # The default is not in /tmp, which may be in memory, nor in the home, which machines may share.
    if cache_dir is None:
        cache_dir = f"{os.environ.get('TMPDIR') or '/var/tmp'}/capstream-{os.getuid()}"
        _make_private_folder(Path(cache_dir), option)
    root = Path(cache_dir) / "capstream-cache"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = root.stat().st_uid
        if owner == os.getuid():
            with locked(root):
                pass
    except OSError as error:
        raise ValueError(f"{option}: {root}: {error.strerror}; name another folder") from None
    if owner != os.getuid():
        raise ValueError(f"{option}: {root}: belongs to another user; name another folder")
    return root
