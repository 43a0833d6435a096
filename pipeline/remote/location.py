"""Where data sets lie on this machine: in their own folder, or behind a URL in one of the cache."""

import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.remote.cache import ShardCache, locked
from pipeline.remote.download import fetch_verified
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
from shards.storage import is_remote, location


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
    with locked(folder):
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
        fetch_verified(url, name, temporary, sha256)
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
            with locked(root):
                pass
    except OSError as error:
        raise ValueError(f"{setting}: {root}: {error.strerror}; name another folder") from None
    if owner != os.getuid():
        raise ValueError(f"{setting}: {root}: belongs to another user; name another folder")
    return root
