"""Files that appear under their name whole, or not at all, whatever happens to the process."""

import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from shards.storage import is_remote, upload

# What file systems answer that have no locks, such as Lustre mounted without them.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the name `path` when the block ends without an error.

    The file and then its folder reach the disk before this returns. After an error nothing is left
    under `path`; after a kill only a `.NAME.HOST-PID.tmp` remains. Two processes writing the same
    path each write their own temporary file, and the later rename wins. A file behind a URL is
    written on this machine, where it has no name that could remain, and uploaded whole.

    Raises:
        OSError: as the file system reports it, the temporary file removed.
    """
    if is_remote(path):
        with tempfile.TemporaryFile() as file:
            yield cast(BinaryIO, file)
            file.flush()
            upload(Path(f"/dev/fd/{file.fileno()}"), path)
        return
    host = socket.gethostname().replace("/", "_")
    temporary = path.with_name(f".{path.name}.{host}-{os.getpid()}.tmp")
    try:
        with _open_locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            # A write that fails does not say of what, and nobody knows the temporary name.
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    fsync_folder(path.parent)


def _open_locked(path: Path) -> BinaryIO:
    """A new file with a lock that tells `remove_abandoned` of its process's life.

    A kill ends the lock, on whichever machine and in whichever container.
    """
    while True:
        file = open(path, "w+b")  # noqa: SIM115  # the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if path.exists():
            return file
        file.close()  # removed before the lock was there


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut.

    Raises:
        OSError: names the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # which does not say of what
        raise type(error)(error.errno, error.strerror, str(folder)) from None
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of processes that are no more."""
    if is_remote(folder):  # those were written elsewhere
        return
    for path in folder.glob(".*.tmp"):
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # NFS gives a reader no other
                path.unlink()
        except (FileNotFoundError, BlockingIOError):  # removed by another, or in use
            continue
        except OSError as error:
            if error.errno not in NO_LOCKS:  # there nobody can tell whose it is
                raise
