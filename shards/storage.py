"""Files and folders on this machine, or behind any URL that fsspec knows.

A `Path` in this package is a pathlib path or, for a URL, a path of universal_pathlib with the same
methods. The functions here do what differs between the two: remote reads are retried, uploads are
checked, and files that must be on the local disk are fetched.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from shards.retry import persistently

T = TypeVar("T")


def location(text: str) -> Path:
    """The path of a folder or file that is given as a path or as a URL such as s3://bucket/folder.

    Raises:
        ValueError: a URL whose libraries are not installed, or whose scheme is unknown.
    """
    if "://" not in text:
        return Path(text)
    try:
        from upath import UPath

        # Listings are not cached, because other processes write to the same folder.
        path = UPath(text, use_listings_cache=False, **_timeouts(text))
        _ = path.fs  # does not connect, but imports the library of the scheme
        if path.protocol in ("file", "local"):
            return Path(path.path)
    except ValueError as error:
        raise ValueError(f"{text}: unknown kind of URL ({error})") from None
    except ImportError as error:
        raise ValueError(
            f"{text}: a URL needs the extra `remote`: pip install '.[remote]' in the checkout "
            f"({error})"
        ) from None
    return cast(Path, path)


def _timeouts(text: str) -> dict[str, Any]:
    """Options that end a silent connection, so that it is retried; s3fs ends it after 15 s itself.

    The default of fsspec for http limits the whole transfer, and a large file on a slow line takes
    longer.
    """
    if not text.startswith(("http://", "https://")):
        return {}
    import aiohttp
    from fsspec.config import conf

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
    configured = conf.get(text.partition("://")[0], {}).get("client_kwargs", {})
    return {"client_kwargs": {"timeout": timeout, **configured}}


def is_remote(path: Path) -> bool:
    """Whether a path is a URL."""
    return not isinstance(path, Path)


def read_bytes(path: Path) -> bytes:
    """The contents of a file. Remote reads are retried.

    Raises:
        OSError: it cannot be read.
    """
    return read_parsed(path, lambda data: data)


def read_parsed(path: Path, parse: Callable[[bytes], T]) -> T:
    """The parsed contents of a file. A remote file that cannot be parsed is read again.

    Half an answer may look complete, and the open() of fsspec reports any failure of a web server
    as a missing file.

    Raises:
        OSError: it cannot be read, or a remote file cannot be parsed.
    """
    if not is_remote(path):
        return parse(path.read_bytes())
    return persistently(path, lambda: parse(_fs(path).cat_file(str(path))))


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Read `size` bytes of a file from byte `offset` on.

    Raises:
        OSError: it cannot be read, or is too short.
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
    """The size of a file in bytes.

    Raises:
        OSError: there is no such file.
    """
    return persistently(path, lambda: path.stat().st_size)


def make_folder(path: Path) -> None:
    """Make a folder and its parents. Object stores have no folders to make."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def upload(local: Path, path: Path) -> None:
    """Upload a file of this machine to a URL, where it appears whole or not at all.

    Raises:
        OSError: the upload failed.
    """

    def put() -> None:
        _fs(path).put_file(str(local), str(path))
        arrived = int(_fs(path).size(str(path)))
        if arrived != local.stat().st_size:
            raise OSError(f"{arrived:,} of {local.stat().st_size:,} bytes arrived")

    persistently(path, put)


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """A local path with the contents of `path`: itself, or a temporary copy of a remote file."""
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
    """Copy a remote file over `local`, in one attempt. The result is not checked.

    Raises:
        Exception: any failure, as the library of the store raises it.
    """
    # By default s3fs holds ten parts of 50 MB in memory. A single request is written to the disk as
    # it arrives, and resumed where it was cut off.
    options = {"max_concurrency": 1} if "s3" in _fs(path).protocol else {}
    _fs(path).get_file(str(path), str(local), **options)


def _fs(path: Any) -> Any:
    return path.fs
