"""Reading the image of a record: a file or a member of a tar, on this machine or behind a URL.

Only files in the image folder are read, whichever paths the annotations name.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from shards.images import RejectedImageError
from shards.retry import persistently
from shards.sources.record import Record, is_utf8
from shards.storage import is_remote, read_bytes, read_range

MAX_FILE_BYTES = 256 << 20  # of an image, which is read into memory
READ_AHEAD = 16  # images that are fetched from a URL while one is packed

# Reasons for a rejection that may have passed when the build is run again.
PASSING_REASONS = ("missing file", "unreadable file")

# Errors that concern one image. Any other error is a failure of the machine, and stops the build.
OWN_ERRORS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ELOOP, errno.ENXIO)


def read_images(
    images_dir: Path, records: Sequence[Record]
) -> Iterator[tuple[Record, Callable[[], bytes]]]:
    """Each record with a function that returns its image's bytes, or raises like `read_image`.

    From a URL several images are fetched ahead.
    """
    if not is_remote(images_dir):
        for record in records:
            yield record, lambda record=record: read_image(images_dir, record)  # type: ignore[misc]
        return
    with ThreadPoolExecutor(READ_AHEAD) as threads:
        coming: deque[tuple[Record, Future[bytes]]] = deque()
        for record in records:
            coming.append((record, threads.submit(read_image, images_dir, record)))
            if len(coming) >= READ_AHEAD:
                ready, future = coming.popleft()
                yield ready, future.result
        for ready, future in coming:
            yield ready, future.result


def read_image(images_dir: Path, record: Record) -> bytes:
    """The stored bytes of one image.

    Raises:
        RejectedImageError: it is missing, cannot be read, or its name leads out of the folder.
        OSError: the machine or the network failed, or the whole image folder is gone.
    """
    span = record.span
    name = _safe_name(record.file_name)
    if span is not None:
        name = _safe_name(span.tar)
        _check_bytes(span.size)
    try:
        if span is not None:
            return read_range(images_dir / name, span.offset, span.size)
        if is_remote(images_dir):
            return read_bytes(images_dir / name)
        return _read_regular(f"{images_dir}/{name}")  # pathlib would take as long as reading does
    except (FileNotFoundError, NotADirectoryError) as error:
        if not persistently(images_dir, images_dir.is_dir):
            raise OSError(f"{images_dir}: the image folder is gone") from None
        raise RejectedImageError("missing file", error.strerror or "no such file") from None
    except MemoryError:  # the size of an image behind a URL is not known before
        raise RejectedImageError("image too large", "does not fit into memory") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise RejectedImageError("unsafe file name", "longer than the disk allows") from None
        if error.errno in OWN_ERRORS:
            raise RejectedImageError("unreadable file", os.strerror(error.errno)) from None
        raise


def is_readable(images_dir: Path, record: Record) -> bool:
    """Whether an image that could not be read before can be read now."""
    try:
        read_image(images_dir, record)
    except RejectedImageError:
        return False
    return True


def _read_regular(path: str) -> bytes:
    """Read a regular file. Reading a named pipe or a device might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a regular file")
        _check_bytes(facts.st_size)
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _check_bytes(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise RejectedImageError("image too large", f"{size:,} bytes")


def _safe_name(name: str) -> str:
    if not name:
        raise RejectedImageError("unsafe file name", "is empty")
    if name[0] == "/":
        raise RejectedImageError("unsafe file name", "is an absolute path outside the image folder")
    if ".." in name.split("/") or "\\" in name or "://" in name:
        raise RejectedImageError("unsafe file name", "leaves the image folder")
    if not is_utf8(name):  # the JSON of the sample could not hold it
        raise RejectedImageError("unsafe file name", "is not UTF-8")
    if "\0" in name:
        raise RejectedImageError("unsafe file name", "holds a NUL character")
    return name
