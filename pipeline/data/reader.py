"""Random access to the samples of a shard folder: indexed positional reads, checksums checked."""

import json
import os
import zlib
from bisect import bisect_right
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.batch import BadSampleError
from pipeline.remote.cache import ShardCache
from shards.format.features import feature_policy
from shards.format.index import read_index
from shards.format.manifest import read_manifest
from shards.format.names import TOKENIZER
from shards.index_tars import foreign_meta, is_foreign
from shards.tokenizer import encode_all, load_tokenizer, tokenizer_sha256

MAX_OPEN_SHARDS = 64  # file descriptors that a loader worker keeps open
MAX_GAP = 1 << 16  # bytes: across a smaller gap, a sample's two files are read in one read


class ShardFolder:
    """Random access to the samples of a finished shard folder.

    Args:
        folder: holds manifest, index and tokenizer, and the shards too if there is no cache.
        cache: fetches the shards of a remote data set.
    Raises:
        ValueError: the folder is not a finished data set, or has no sample.
    """

    def __init__(self, folder: Path, cache: ShardCache | None = None) -> None:
        self.folder = folder
        self.cache = cache
        self.location = str(folder) if cache is None else cache.url  # for messages
        self.manifest = read_manifest(folder)
        self.foreign = is_foreign(self.manifest)
        self.features = feature_policy(self.manifest.image_policy)
        self.index = read_index(folder)
        self.tokenizer = load_tokenizer(folder / TOKENIZER)
        if len(self.index) == 0:
            raise ValueError(f"{folder}: the data set {self.manifest.name!r} is empty")
        if len(self.index) != self.manifest.num_samples:
            raise ValueError(f"{folder}: index and manifest differ; run `python -m shards verify`")
        for shard in () if cache else self.manifest.shards:  # a cache verifies what it fetches
            path = folder / shard.file
            if not path.is_file() or path.stat().st_size != shard.num_bytes:
                raise ValueError(
                    f"{path}: missing, or not of the {shard.num_bytes:,} bytes that the manifest "
                    "lists; run `python -m shards verify`"
                )
        if tokenizer_sha256(folder / TOKENIZER) != self.manifest.tokenizer_sha256:
            raise ValueError(
                f"{folder / TOKENIZER}: not the tokenizer that the shards were built with"
            )
        # A list, because NumPy's search for one number takes ten times longer.
        self._shard_starts = self.index.shard_starts.tolist()
        self._files: dict[int, int] = {}  # shard number -> descriptor, the last used at the end

    def __len__(self) -> int:
        return len(self.index)

    def new_inputs(self, count: int, image_size: int) -> np.ndarray:
        """Memory for the encoder's inputs of so many samples.

        Returns:
            (count, S, S, 3) uint8 of images, else (count, P, F) or (count, F) of stored features.
        """
        return np.empty((count, *self.input_shape(image_size)), self.input_dtype)

    def input_shape(self, image_size: int) -> tuple[int, ...]:
        """Shape of one sample as the encoder reads it."""
        return self.features.shape if self.features else (image_size, image_size, 3)

    @property
    def input_dtype(self) -> np.dtype:
        """Type of a sample's numbers as the encoder reads it."""
        return np.dtype(self.features.dtype if self.features else np.uint8)

    def read(self, sample: int) -> tuple[str, bytes, dict[str, Any]]:
        """Read one sample and check the crc32 of its two files.

        One read fetches both, unless other files of a tar made elsewhere lie between them.

        Returns:
            The key, the bytes of the JPEG or of the stored features, and the parsed JSON.
        Raises:
            BadSampleError: the bytes are not those that were packed.
            OSError: the tar cannot be read.
        """
        index = self.index
        shard = self._shard_of(sample)
        image_start = int(index.image_offset[sample])
        image_end = image_start + int(index.image_size[sample])
        meta_start = int(index.meta_offset[sample])
        meta_end = meta_start + int(index.meta_size[sample])
        start = min(image_start, meta_start)  # captions may come first in tars made elsewhere
        size = max(image_end, meta_end) - start
        if size - (image_end - image_start) - (meta_end - meta_start) > MAX_GAP:
            image = self._pread(shard, image_end - image_start, image_start)
            meta = self._pread(shard, meta_end - meta_start, meta_start)
        else:
            data = self._pread(shard, size, start)
            image = data[image_start - start : image_end - start]
            meta = data[meta_start - start : meta_end - start]
        for part, crc32 in ((image, index.image_crc32[sample]), (meta, index.meta_crc32[sample])):
            if zlib.crc32(part) != crc32:
                raise self.bad_sample(sample, "crc32 differs")
        return index.key(sample), image, self._parse_meta(meta)

    def read_meta(self, sample: int) -> dict[str, Any]:
        """Read the JSON of one sample without its image, and check its crc32. Raises as `read`."""
        size, offset = int(self.index.meta_size[sample]), int(self.index.meta_offset[sample])
        data = self._pread(self._shard_of(sample), size, offset)
        if zlib.crc32(data) != self.index.meta_crc32[sample]:
            raise self.bad_sample(sample, "crc32 differs")
        return self._parse_meta(data)

    def _parse_meta(self, data: bytes) -> dict[str, Any]:
        """Parse a sample's JSON. Captions of a tar made elsewhere are tokenised here."""
        if not self.foreign:
            return dict(json.loads(data))
        return foreign_meta(data, partial(encode_all, self.tokenizer))

    def bad_sample(self, sample: int, reason: str) -> BadSampleError:
        """An error that names the tar and the key of a sample, and why it is bad."""
        what_to_do = (
            "the shard was verified when it was fetched, so check this disk and delete the file"
            if self.cache
            else "`python -m shards verify` lists all damaged files"
        )
        return BadSampleError(
            f"{self._path(self._shard_of(sample))}: sample {self.index.key(sample)} is bad "
            f"({reason}); {what_to_do}"
        )

    def _shard_of(self, sample: int) -> int:
        return bisect_right(self._shard_starts, sample) - 1

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        if self.cache is None:
            return os.pread(self._descriptor(shard), size, offset)
        # Opened for each read, because an open file would keep an evicted shard on the disk.
        descriptor = self.cache.open(shard)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def _path(self, shard: int) -> Path:
        return self.folder / self.manifest.shards[shard].file

    def _descriptor(self, shard: int) -> int:
        descriptor = self._files.pop(shard, None)
        if descriptor is None:
            if len(self._files) >= MAX_OPEN_SHARDS:
                os.close(self._files.pop(next(iter(self._files))))
            descriptor = os.open(self._path(shard), os.O_RDONLY)
        self._files[shard] = descriptor
        return descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardFolder, (self.folder, self.cache)  # each process opens its own files
