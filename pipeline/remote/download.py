"""Download of one file of a remote data set, whole and verified."""

import hashlib
import os
from itertools import count
from pathlib import Path

from pipeline.runtime.errors import ExplainedError
from shards.format.names import MANIFEST
from shards.retry import ATTEMPTS, DISK_FULL, LastingError, persistently
from shards.storage import fetch, location

PATIENCE_S = 600.0  # how long a store may fail to answer before the run ends


class FetchError(ExplainedError, OSError):
    """A file cannot be fetched, or is not the one of the manifest; the message says what to do."""


class _DiffersError(OSError):
    """The fetched file is not the one that the manifest lists."""


def fetch_verified(
    url: str,
    name: str,
    local: Path,
    sha256: str,
    num_bytes: int | None = None,
    patience_s: float | None = None,
) -> None:
    """Fetch a file, verify it, and force it onto the disk.

    Args:
        url: of the data set's folder.
        name: of the file.
        local: the file to write; an existing one is overwritten.
        sha256: that the file must have.
        num_bytes: that the file must have; None if the manifest does not list its size.
        patience_s: how long a store may fail to answer; PATIENCE_S by default.
    Raises:
        FetchError: the file cannot be fetched, or is not the one that the manifest lists.
    """
    # Made here, where it is used: a connection to a store survives neither a fork nor a pickle.
    source = location(url) / name
    differing = count(1)

    def attempt() -> None:
        fetch(source, local)
        try:
            check()
        except _DiffersError as error:  # cut off (try again) or replaced (always the same)
            if next(differing) < ATTEMPTS:
                raise
            raise LastingError(str(error)) from error

    def check() -> None:
        with open(local, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if num_bytes not in (None, size):
                raise _DiffersError(f"{size:,} bytes instead of {num_bytes:,}")
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise _DiffersError(f"sha256 {found} instead of {sha256}")
            os.fsync(file.fileno())

    try:
        persistently(source, attempt, PATIENCE_S if patience_s is None else patience_s)
    except OSError as error:
        raise FetchError(_explain(source, local, error)) from error


def _explain(source: Path, local: Path, error: OSError) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, _DiffersError):
        return (
            f"{source}: differs from {MANIFEST} in {ATTEMPTS} attempts ({cause}): it was replaced "
            "or damaged after the data set was finished. Restore the original file and start the "
            "same command again, or train on the new data set with another run_dir"
        )
    if isinstance(cause, FileNotFoundError):
        return (
            f"{source}: does not exist, but {MANIFEST} lists it. Restore it and start the same "
            "command again; `python -m shards verify` lists all missing files"
        )
    if isinstance(cause, OSError) and cause.errno in DISK_FULL:
        return f"{local.parent}: the disk is full; set a lower cache_gb or another cache_dir"
    return (
        f"{source}: cannot be fetched ({error}); start the same command again when the store "
        "answers"
    )
