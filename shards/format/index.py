"""The index of a data set: the position of every sample, so that each one takes a single read."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from shards.atomic import atomic_file
from shards.format.names import INDEX
from shards.format.tar import Member
from shards.storage import local_copy


@dataclass(frozen=True)
class Index:
    """The position of every sample of a data set. Samples are numbered 0..N-1 in shard order.

    The columns are memory-mapped: opening an index of ten million samples is as cheap as of one.
    """

    # (S + 1,) int64: shard s holds samples shard_starts[s] to shard_starts[s + 1] - 1.
    shard_starts: np.ndarray
    keys: np.ndarray  # (N,) bytes
    image_offset: np.ndarray  # (N,) int64, bytes
    image_size: np.ndarray  # (N,) int64, bytes
    image_crc32: np.ndarray  # (N,) uint32
    meta_offset: np.ndarray  # (N,) int64, bytes
    meta_size: np.ndarray  # (N,) int64, bytes
    meta_crc32: np.ndarray  # (N,) uint32

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, sample: int) -> str:
        """The key of a sample number."""
        return bytes(self.keys[sample]).decode()


# The dtype of each column. The keys are as wide as the longest key.
INDEX_TYPES = {
    "shard_starts": "<i8",
    "keys": "S",
    "image_offset": "<i8",
    "image_size": "<i8",
    "image_crc32": "<u4",
    "meta_offset": "<i8",
    "meta_size": "<i8",
    "meta_crc32": "<u4",
}


def index_columns(members: Sequence[Member]) -> dict[str, np.ndarray]:
    """The part of the index for one shard: all columns but `shard_starts`."""
    columns: dict[str, list[Any]] = {"keys": [m.key.encode() for m in members]}
    for part in ("image", "meta"):
        for column in ("offset", "size", "crc32"):
            columns[f"{part}_{column}"] = [getattr(getattr(m, part), column) for m in members]
    return {name: np.array(values, INDEX_TYPES[name]) for name, values in columns.items()}


def write_index(folder: Path, shards: Sequence[dict[str, np.ndarray]]) -> None:
    """Write index.npz from the `index_columns` of each shard, in shard order."""
    starts = np.array([0, *accumulate(len(shard["keys"]) for shard in shards)], "<i8")
    arrays = {"shard_starts": starts}
    for name in INDEX_TYPES:
        if name != "shard_starts":
            arrays[name] = np.concatenate([shard[name] for shard in shards])
    with atomic_file(folder / INDEX) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # not compressed, so that it can be mapped


def read_index(folder: Path) -> Index:
    """Open the index of a shard folder.

    Raises:
        ValueError: the index is missing or damaged.
    """
    path = folder / INDEX
    try:
        with local_copy(path) as local:  # a mapped file stays readable after its copy is removed
            index = Index(**_map_npz(local))
        _check_columns(index)
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: has no {INDEX}; is it a shard folder, and was its build finished?"
        ) from None
    except Exception as error:  # zipfile and NumPy raise many kinds for damaged headers
        raise ValueError(
            f"{path}: damaged index ({error}); write it again with `python -m shards finalize`, or "
            "`index` for tars made by others"
        ) from error
    return index


def _check_columns(index: Index) -> None:
    for name, dtype in INDEX_TYPES.items():
        column = getattr(index, name)
        length = len(column) if name == "shard_starts" else len(index)
        if not np.issubdtype(column.dtype, np.dtype(dtype).type) or column.shape != (length,):
            raise ValueError(f"{name} is {column.dtype} of shape {column.shape}")


def _map_npz(path: Path) -> dict[str, np.ndarray]:
    """Memory-map each array of an uncompressed npz file, which `np.load` cannot do."""
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed")
            with archive.open(entry) as array_file:
                version = np.lib.format.read_magic(array_file)
                read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                shape, _, dtype = read_header(array_file)
                header_size = array_file.tell()
            file.seek(entry.header_offset + 26)  # lengths of the name and of the extra field
            name_size, extra_size = np.frombuffer(file.read(4), dtype="<u2")
            offset = entry.header_offset + 30 + int(name_size) + int(extra_size) + header_size
            name = entry.filename.removesuffix(".npy")
            if shape == (0,):  # an empty file cannot be mapped
                arrays[name] = np.empty(shape, dtype)
            else:
                mapped = np.memmap(path, dtype, mode="r", offset=offset, shape=shape)
                arrays[name] = np.asarray(mapped)  # np.memmap itself is slow to index
    return arrays
