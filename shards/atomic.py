"""Files that appear under their name whole, or not at all, whatever happens to the process."""

import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import psutil

from shards.storage import is_remote, upload

TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)-(?P<pid>\d+)\.tmp")
ABANDONED_S = 3600  # a temporary file that nobody has written to for so long is nobody's


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the name `path` when the block ends without an error.

    The file and then its folder reach the disk before this returns. After an error nothing is left
    under `path`; after a kill only a `.NAME.HOST-PID.tmp` remains. Two processes writing the same
    path each write their own temporary file, and the later rename wins. A file behind a URL is
    written on this machine and uploaded whole.

    Raises:
        OSError: as the file system reports it, the temporary file removed.
    """
    if is_remote(path):
        with tempfile.NamedTemporaryFile(prefix="capstream-") as file:
            yield cast(BinaryIO, file)
            file.flush()
            upload(Path(file.name), path)
        return
    temporary = path.with_name(f".{path.name}.{_host()}-{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            error.filename = str(path)  # a write that fails does not say of what
        raise
    fsync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of processes that were killed."""
    if is_remote(folder):  # those were written elsewhere
        return
    for path in folder.glob(".*.tmp"):
        found = TEMPORARY.fullmatch(path.name)
        try:
            if found and _is_abandoned(path, found["host"], int(found["pid"])):
                path.unlink()
        except FileNotFoundError:  # somebody else was faster
            continue


def _is_abandoned(path: Path, host: str, pid: int) -> bool:
    if host == _host() and not psutil.pid_exists(pid):
        return True
    return time.time() - path.stat().st_mtime > ABANDONED_S


def _host() -> str:
    return socket.gethostname().replace(".", "_")
