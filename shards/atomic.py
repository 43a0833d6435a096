"""Writing files atomically: a file appears under its name whole, or not at all."""

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

# The errors of file systems without locks, such as Lustre mounted without them.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to `path` when the block ends without an error.

    The file and its folder are on the disk before this returns. After an error the temporary file
    is removed and `path` is as before. After a kill the temporary file `.NAME.HOST-PID.tmp` is left
    behind. If two processes write the same path, each writes its own temporary file, and the later
    rename wins. A file behind a URL is written to an unnamed file on this machine and uploaded.

    Raises:
        OSError: the file system failed; the temporary file is removed.
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
            # A failed write names no file, and a failed rename names the temporary one.
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    fsync_folder(path.parent)


def _open_locked(path: Path) -> BinaryIO:
    """Open a new file with a lock, from which `remove_abandoned` knows that its process is alive.

    The lock ends when the process is killed, on whichever machine and in whichever container.
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
        file.close()  # another process removed it before it was locked


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically, see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


def fsync_folder(folder: Path) -> None:
    """Write the entries of `folder` to the disk, so that renames in it survive a power cut.

    Raises:
        OSError: names the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # it names no path
        raise type(error)(error.errno, error.strerror, str(folder)) from None
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Recognise and remove the temporary files that killed processes left behind."""
    if is_remote(folder):  # temporary files are never written there
        return
    for path in folder.glob(".*.tmp"):
        try:
            with open(path, "rb") as file:
                fcntl.flock(
                    file, fcntl.LOCK_SH | fcntl.LOCK_NB
                )  # NFS gives readers no exclusive lock
                path.unlink()
        except (
            FileNotFoundError,
            BlockingIOError,
        ):  # another process removed it, or its writer is alive
            continue
        except OSError as error:
            if error.errno not in NO_LOCKS:  # without locks it cannot be known to be abandoned
                raise
