"""Image files: found in folders and by patterns, listed on disk, decoded ahead of the model.

S side in pixels of the square that the encoder sees
"""

import glob
import hashlib
import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np

from pipeline.data.transforms import resize_center
from shards.images import RejectedImageError, decode_any

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp")
MAX_FILE_BYTES = 1 << 28  # a larger file is no image of an allowed size, and would fill the memory
BATCHES_AHEAD = 2  # decoded, or being decoded, while the model captions one


def find_images(inputs: Sequence[str]) -> Iterator[str]:
    """The image files that the inputs name, in the order of the inputs.

    Args:
        inputs: files, whatever their names; folders, of which all image files are taken, those of
            subfolders too; and patterns with `*`, `?`, `[...]` or `**`. Folders and patterns give
            files that end like an image file (`SUFFIXES`), sorted, without hidden ones.
    Raises:
        ValueError: an input does not exist, or has no image.
        OSError: a folder cannot be read.
    """
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found, problem = _walk(path), "no image in this folder"
        elif path.exists() or path.is_symlink():
            found, problem = iter([text]), ""
        elif glob.has_magic(text):
            names = sorted(glob.iglob(text, recursive=True))  # noqa: PTH207  # absolute ones too
            found, problem = filter(_is_image_name, names), "no image matches this pattern"
        else:
            raise ValueError(f"{text}: no such file or folder")
        first = next(found, None)
        if first is None:
            raise ValueError(f"{text}: {problem} ({', '.join(SUFFIXES)})")
        yield first
        yield from found


def _walk(folder: Path) -> Iterator[str]:
    # Names only: a million paths or directory entries would take several times the memory.
    for name in sorted(os.listdir(folder)):  # noqa: PTH208
        if name.startswith("."):
            continue
        path = folder / name
        if _is_image_name(name):
            yield str(path)
        elif path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def read_list(path: str) -> Iterator[str]:
    """The paths in a list file, one a line; `-` reads standard input."""
    with open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-") as file:
        for line in file:
            if name := line.rstrip(b"\r\n"):
                yield os.fsdecode(name)


class ImageList:
    """Paths of images, kept in a temporary file, so that a million of them take no memory.

    It may be iterated over again, but not twice at the same time.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # iterated over later
        self._count = 0
        digest = hashlib.sha256()
        for path in paths:
            line = json.dumps(path).encode() + b"\n"  # a name may have line ends
            self._file.write(line)
            digest.update(line)
            self._count += 1
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        self._file.seek(0)
        for line in self._file:
            yield json.loads(line)

    def check_unique(self, name_of: Callable[[str], object], what: str) -> None:
        """Refuse two images for which `name_of` returns the same.

        Takes 8 bytes of memory an image.

        Raises:
            ValueError: names both and says `what` they share.
        """
        hashes = np.fromiter((hash64(str(name_of(p))) for p in self), np.uint64, len(self))
        values, counts = np.unique(hashes, return_counts=True)
        if len(values) == len(hashes):
            return
        shared = values[counts > 1][0]
        first, second = islice((p for p in self if hash64(str(name_of(p))) == shared), 2)
        if first == second:
            raise ValueError(f"{first}: is given twice")
        raise ValueError(f"{first} and {second} have the same {what}, {name_of(first)}")


def list_images(inputs: Sequence[str], list_path: str | None) -> ImageList:
    """The images that `inputs` name, as `find_images` finds them, then those of a list file.

    Raises:
        ValueError: there is no image, or an input does not exist.
        OSError: a folder or the list file cannot be read.
    """
    listed = read_list(list_path) if list_path else ()
    images = ImageList(chain(find_images(inputs), listed))
    if not len(images):
        raise ValueError(f"{list_path}: lists no image")
    return images


def hash64(text: str) -> int:
    """64 bits of a text's hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "little")


def read_image(path: str, size: int) -> np.ndarray:
    """An image file of any allowed format as the square that the encoder sees.

    Returns:
        (S, S, 3) uint8.
    Raises:
        ValueError: the file is missing, unreadable or not a whole image. Does not name the file.
    """
    try:
        if not Path(path).is_file():
            raise ValueError("is not a file" if Path(path).exists() else "no such file")
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        pixels = decode_any(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    except RejectedImageError as error:
        raise ValueError(str(error)) from None
    square = np.empty((size, size, 3), dtype=np.uint8)
    resize_center(np.ascontiguousarray(pixels), square)
    return square


def decode_ahead(
    batches: Iterable[list[str]], size: int, num_threads: int
) -> Iterator[tuple[list[str], list[np.ndarray | ValueError]]]:
    """Decode batches of image files in threads, a few batches before they are asked for.

    Returns:
        For each batch its paths, and for each path the image, as `read_image` returns or raises it.
    """

    def result(future: Future[np.ndarray]) -> np.ndarray | ValueError:
        try:
            return future.result()
        except ValueError as error:
            return error

    pool = ThreadPoolExecutor(num_threads)
    waiting: deque[tuple[list[str], list[Future[np.ndarray]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, [pool.submit(read_image, path, size) for path in batch]))
            if len(waiting) > BATCHES_AHEAD:
                paths, futures = waiting.popleft()
                yield paths, [result(future) for future in futures]
        while waiting:
            paths, futures = waiting.popleft()
            yield paths, [result(future) for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)
