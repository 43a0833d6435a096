"""One file of a data set behind a URL, brought whole and verified."""

import hashlib
import os
from itertools import count
from pathlib import Path

from pipeline.runtime.errors import ExplainedError
from shards.format import MANIFEST
from shards.storage import ATTEMPTS, DISK_FULL, LastingError, fetch, location, persistently

PATIENCE_S = 600.0  # with a store that does not answer, before a run is ended for it


class FetchError(ExplainedError, OSError):
    """A file of a data set cannot be had, or is another; the message says what to do."""


class _DiffersError(OSError):
    """What arrived is not what the manifest lists."""


def fetch_verified(
    url: str,
    name: str,
    local: Path,
    sha256: str,
    num_bytes: int | None = None,
    patience_s: float | None = None,
) -> None:
    """Fetch the file `name` of a data set over `local`, and onto the disk.

    Args:
        patience_s: with a store that does not answer; PATIENCE_S by default.
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
        persistently(source, attempt, PATIENCE_S if patience_s is None else patience_s)
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
