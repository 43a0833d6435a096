"""Folders and files of this machine, or behind any URL that fsspec knows.

A `Path` in this package is a pathlib path, or for a URL universal_pathlib's, which has the same
methods. Here is what differs: reads are tried again, uploads are checked, and what must lie on this
machine's disk is fetched.
"""

import contextlib
import errno
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

ATTEMPTS = 6
FIRST_PAUSE_S = 0.2  # doubled after each attempt: 6 s in all
LONGEST_PAUSE_S = 15.0
TELL_S = 5.0  # of failing, before that is told


class LastingError(OSError):
    """A failure that asking again has proved not to mend."""


# Asking again does not change these answers.
LASTING_ERRORS = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, MemoryError,
    LastingError,
)  # fmt: skip
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")


def location(text: str) -> Path:
    """The path of a folder or file given as a path or as a URL such as s3://bucket/folder.

    Raises:
        ValueError: a URL, but the libraries for it are not installed, or know no such scheme.
    """
    if "://" not in text:
        return Path(text)
    try:
        from upath import UPath

        # Listings are not remembered: other processes write to the same folder.
        path = UPath(text, use_listings_cache=False, **_timeouts(text))
        _ = path.fs  # connects to nothing, but needs the scheme's library
        if path.protocol in ("file", "local"):
            return Path(path.path)
    except ValueError as error:
        raise ValueError(f"{text}: no path, and no kind of URL that is known ({error})") from None
    except ImportError as error:
        raise ValueError(
            f"{text}: needs more libraries, pip install 'capstream[remote]' ({error})"
        ) from None
    return cast(Path, path)


def _timeouts(text: str) -> dict[str, Any]:
    """Options that make a silent connection end, to be tried again; s3fs waits 15 s by itself.

    fsspec's own for http limits the whole transfer, which a large file on a slow line outlasts.
    """
    if not text.startswith(("http://", "https://")):
        return {}
    import aiohttp
    from fsspec.config import conf

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
    configured = conf.get(text.partition("://")[0], {}).get("client_kwargs", {})
    return {"client_kwargs": {"timeout": timeout, **configured}}


def is_remote(path: Path) -> bool:
    """Whether a path is a URL's."""
    return not isinstance(path, Path)


def read_bytes(path: Path) -> bytes:
    """The contents of a file; from afar with several attempts.

    Raises:
        OSError: it cannot be read.
    """
    return read_parsed(path, lambda data: data)


def read_parsed(path: Path, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of a file; from afar asked for again where nothing can be made of it.

    Half an answer may look whole, and fsspec's open() takes any failure of a web server for a file
    that is not there.

    Raises:
        OSError: it cannot be read, or from afar not be parsed.
    """
    if not is_remote(path):
        return parse(path.read_bytes())
    return persistently(path, lambda: parse(_fs(path).cat_file(str(path))))


def read_range(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on.

    Raises:
        OSError: it cannot be read, or ends before.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    else:
        data = persistently(
            path, lambda: _fs(path).cat_file(str(path), start=offset, end=offset + size)
        )
    if len(data) != size:
        raise OSError(f"{path}: ends at byte {offset + len(data):,}, not {offset + size:,}")
    return data


def size_of(path: Path) -> int:
    """Bytes of a file.

    Raises:
        OSError: there is none.
    """
    return persistently(path, lambda: path.stat().st_size)


def make_folder(path: Path) -> None:
    """Make a folder and its parents; object stores need none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def upload(local: Path, path: Path) -> None:
    """Put a whole file of this machine under a URL, where it appears at once or not at all.

    Raises:
        OSError: it cannot be put there.
    """

    def put() -> None:
        _fs(path).put_file(str(local), str(path))
        arrived = int(_fs(path).size(str(path)))
        if arrived != local.stat().st_size:
            raise OSError(f"{arrived:,} of {local.stat().st_size:,} bytes arrived")

    persistently(path, put)


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """A path of this machine with the contents of `path`: itself, or a copy for the time being."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="capstream-") as folder:
        local = Path(folder) / path.name

        def attempt() -> None:
            fetch(path, local)
            if local.stat().st_size != int(_fs(path).size(str(path))):
                raise OSError(f"only {local.stat().st_size:,} bytes arrived")

        persistently(path, attempt)
        yield local


def fetch(path: Path, local: Path) -> None:
    """Copy a whole file from afar over `local`. One attempt, and what arrived is not checked.

    Raises:
        Exception: of the store's library, on any failure.
    """
    # Left to itself, s3fs holds ten parts of 50 MB in memory. One request for all of it is written
    # as it comes, and resumed where it is cut off.
    options = {"max_concurrency": 1} if "s3" in _fs(path).protocol else {}
    _fs(path).get_file(str(path), str(local), **options)


def persistently(path: Path, action: Callable[[], T], patience_s: float = 0.0) -> T:
    """Do something with a path; from afar again after a pause, when it fails for what may pass.

    Args:
        patience_s: go on for so long instead of a few attempts, and say so.
    Raises:
        OSError: it failed.
    """
    if not is_remote(path):
        return action()
    start, told = time.monotonic(), False
    for attempt in count(1):
        try:
            return action()
        except Exception as error:  # every store's library has its own kinds
            if isinstance(error, LASTING_ERRORS) or getattr(error, "errno", None) in DISK_FULL:
                raise
            waited_s = time.monotonic() - start
            if waited_s > patience_s if patience_s else attempt == ATTEMPTS:
                raise OSError(
                    f"{path}: failed {attempt} times in {waited_s:.0f} s, at last with: {error}"
                ) from error
            if patience_s and not told and waited_s > TELL_S:
                told = True
                print(
                    f"{path}: failed {attempt} times ({error}); trying on for up to "
                    f"{patience_s / 60:.0f} minutes",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S))
    raise AssertionError("an attempt returns or raises")


def _fs(path: Any) -> Any:
    return path.fs
