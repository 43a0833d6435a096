"""The bytes of a record's picture: from a file or a tar, here or behind a URL, never from outside
the image folder."""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from shards.images import BadImageError
from shards.sources.record import Record, is_utf8
from shards.storage import is_remote, persistently, read_bytes, read_range

READ_AHEAD = 16  # pictures on their way from afar while one is packed

# Reasons for a quarantine that may be gone when the build is run again.
PASSING_REASONS = ("missing file", "unreadable file")

# A picture's own trouble; any other error of the system is the machine's, and stops the build.
OWN_ERRORS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ELOOP)


def read_pictures(
    images_dir: Path, records: Sequence[Record]
) -> Iterator[tuple[Record, Callable[[], bytes]]]:
    """Each record with a call that gives its picture's bytes, or raises as `read_picture`.

    From afar several are fetched ahead of need.
    """
    if not is_remote(images_dir):
        for record in records:
            yield record, lambda record=record: read_picture(images_dir, record)  # type: ignore[misc]
        return
    with ThreadPoolExecutor(READ_AHEAD) as threads:
        coming: deque[tuple[Record, Future[bytes]]] = deque()
        for record in records:
            coming.append((record, threads.submit(read_picture, images_dir, record)))
            if len(coming) >= READ_AHEAD:
                ready, future = coming.popleft()
                yield ready, future.result
        for ready, future in coming:
            yield ready, future.result


def read_picture(images_dir: Path, record: Record) -> bytes:
    """The stored bytes of one picture.

    Raises:
        BadImageError: it is not there, cannot be read, or its name leads out of the folder.
        OSError: the machine's or the network's fault, or the whole folder is gone.
    """
    span = record.span
    path = images_dir / _safe_name(record.file_name if span is None else span.tar)
    try:
        if not is_remote(path) and not path.is_file():
            # A named pipe or a device would be read for ever.
            raise FileNotFoundError(errno.ENOENT, "no such file in the image folder")
        if span is None:
            return read_bytes(path)
        return read_range(path, span.offset, span.size)
    except FileNotFoundError as error:
        if not persistently(images_dir, images_dir.is_dir):
            raise OSError(f"{images_dir}: the image folder is gone") from None
        raise BadImageError("missing file", error.strerror or "no such file") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise BadImageError("unsafe file name", "longer than the disk allows") from None
        if error.errno in OWN_ERRORS:
            raise BadImageError("unreadable file", os.strerror(error.errno)) from None
        raise


def is_readable(images_dir: Path, record: Record) -> bool:
    """Whether a picture that could not be read before can be read now."""
    try:
        read_picture(images_dir, record)
    except BadImageError:
        return False
    return True


def _safe_name(name: str) -> str:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or "://" in name:
        raise BadImageError("unsafe file name", "leaves the image folder")
    if not is_utf8(name):  # nor could the sample's JSON hold it
        raise BadImageError("unsafe file name", "is not UTF-8")
    if "\0" in name:
        raise BadImageError("unsafe file name", "holds a NUL character")
    if not relative.parts:
        raise BadImageError("unsafe file name", "is empty")
    return name
