"""Shards -> batches: indexed positional reads, checked, decoded into one uint8 tensor a batch.

B images, K captions an image, L tokens, S the side of a picture in pixels
"""

import json
import os
import zlib
from bisect import bisect_right
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.cache import ShardCache
from pipeline.config import DataConfig
from pipeline.exits import ExplainedError
from pipeline.images import center_crop, training_crop
from pipeline.order import EMPTY_SLOT, keyed_bytes, keyed_permutation
from shards.format import TOKENIZER, image_id_of, read_index, read_manifest
from shards.index_tars import foreign_meta, is_foreign
from shards.tokenizer import BOS, EOS, PAD, encode_all, load_tokenizer, tokenizer_sha256

MAX_OPEN_SHARDS = 64  # file descriptors a loader process holds
MAX_GAP = 1 << 16  # bytes between a sample's two files that are read rather than skipped

ImageId = int | str


class DamagedSampleError(ValueError):
    """A sample is not what was packed; the message names its tar and key."""


class Batch(NamedTuple):
    """A micro-batch, as it travels from the loader to the device."""

    images: torch.Tensor  # (B, S, S, 3) uint8
    tokens: torch.Tensor  # (B, K, L) int64: BOS, words, EOS, then PAD
    weights: torch.Tensor  # (B, K) float32: 0 for a caption that is only there to fill up
    ids: list[ImageId]  # of the real images, in slot order
    bad: list[str]  # what was left out, each with its tar, key and reason


class EvalBatch(NamedTuple):
    """Pictures to caption, with what people wrote about them."""

    images: torch.Tensor  # (B, S, S, 3) uint8
    ids: list[ImageId]
    references: list[list[str]]  # raw captions of each image
    bad: list[str]  # what was left out, each with its tar, key and reason


class TooManyBadError(ExplainedError, RuntimeError):
    """More samples are damaged than `data.max_bad` allows."""


def check_bad(num_bad: int, max_bad: float, num_samples: int, latest: list[str]) -> None:
    """Refuse to go on where more than a share of the samples was damaged.

    Args:
        max_bad: the share, 0 to 1.
        num_samples: how many samples it is a share of.
        latest: what to quote: damage that this process met.
    Raises:
        TooManyBadError: says how many, and what to do.
    """
    if num_bad > max_bad * num_samples:
        quoted = f"; such as {latest[0]}" if latest else ""
        raise TooManyBadError(
            f"{num_bad:,} damaged samples, more than max_bad ({max_bad:.2%}) of "
            f"{num_samples:,}{quoted}. Mend them, or go on without them with a larger max_bad"
        )


class ShardFolder:
    """Random access to the samples of a finished shard folder.

    Args:
        folder: holds manifest, index and tokenizer, and without a cache the shards.
        cache: brings the shards.
    Raises:
        ValueError: on opening, the folder is no finished data set or has no sample.
    """

    def __init__(self, folder: Path, cache: ShardCache | None = None) -> None:
        self.folder = folder
        self.cache = cache
        self.place = str(folder) if cache is None else cache.url
        self.manifest = read_manifest(folder)
        self.foreign = is_foreign(self.manifest)
        self.index = read_index(folder)
        self.tokenizer = load_tokenizer(folder / TOKENIZER)
        if len(self.index) == 0:
            raise ValueError(f"{folder}: the data set {self.manifest.name!r} is empty")
        if len(self.index) != self.manifest.num_samples:
            raise ValueError(f"{folder}: index and manifest differ; run `python -m shards verify`")
        for shard in () if cache else self.manifest.shards:  # a cache verifies what comes
            path = folder / shard.file
            if not path.is_file() or path.stat().st_size != shard.num_bytes:
                raise ValueError(
                    f"{path}: missing, or not the {shard.num_bytes:,} bytes of the manifest; run "
                    "`python -m shards verify`"
                )
        if tokenizer_sha256(folder / TOKENIZER) != self.manifest.tokenizer_sha256:
            raise ValueError(
                f"{folder / TOKENIZER}: not the tokenizer that the shards were built with"
            )
        self._shard_starts = (
            self.index.shard_starts.tolist()
        )  # NumPy's search takes ten times longer
        self._files: dict[int, int] = {}  # shard number -> descriptor, the latest used last

    def __len__(self) -> int:
        return len(self.index)

    def read(self, sample: int) -> tuple[str, bytes, dict[str, Any]]:
        """One sample: its key, its JPEG bytes, its JSON. Both crc32 checked, in one read
        unless other people's files lie between the two.

        Raises:
            DamagedSampleError: the bytes are not those that were packed.
            OSError: the tar cannot be read.
        """
        index = self.index
        shard = self._shard_of(sample)
        image_start = int(index.image_offset[sample])
        image_end = image_start + int(index.image_size[sample])
        meta_start = int(index.meta_offset[sample])
        meta_end = meta_start + int(index.meta_size[sample])
        start = min(image_start, meta_start)  # other people's captions may come first
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
                raise self.damaged(sample, "crc32 differs")
        return index.key(sample), image, self._parse_meta(meta)

    def _parse_meta(self, data: bytes) -> dict[str, Any]:
        """A sample's JSON; of a tar made by others its captions, with tokens made now."""
        if not self.foreign:
            return dict(json.loads(data))
        return foreign_meta(data, partial(encode_all, self.tokenizer))

    def damaged(self, sample: int, why: str) -> DamagedSampleError:
        """The error that names a sample's tar, key and fault."""
        what_to_do = (
            "it was whole when it came, so remove it and look after that disk"
            if self.cache
            else "`python -m shards verify` lists all damage"
        )
        return DamagedSampleError(
            f"{self._path(self._shard_of(sample))}: sample {self.index.key(sample)} is damaged "
            f"({why}); {what_to_do}"
        )

    def _shard_of(self, sample: int) -> int:
        return bisect_right(self._shard_starts, sample) - 1

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        if self.cache is None:
            return os.pread(self._descriptor(shard), size, offset)
        # Opened for each read: a descriptor that is kept would keep an evicted shard on the disk.
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
        return ShardFolder, (self.folder, self.cache)  # another process opens its own files


class TrainDataset(Dataset[Batch]):
    """Micro-batches by their slots: a map-style data set whose index is an (M, 2) array."""

    def __init__(self, shards: ShardFolder, config: DataConfig, seed: int) -> None:
        self.shards = shards
        self.config = config
        self.seed = seed
        self.vocabulary = shards.tokenizer.get_vocab_size()

    def __getitem__(self, slots: np.ndarray) -> Batch:
        size = self.config.image_size
        return self.load(slots, np.empty((len(slots), size, size, 3), dtype=np.uint8))

    def load(self, slots: np.ndarray, pixels: np.ndarray) -> Batch:
        """The micro-batch of (M, 2) slots, its images in `pixels`, (M, S, S, 3) uint8.

        A damaged sample leaves its slot empty, and is told of in the batch's `bad`.
        """
        assert len(slots) == len(pixels)
        ids: list[ImageId] = []
        captions: list[list[list[int]]] = []
        bad: list[str] = []
        for row, (epoch, sample) in enumerate(slots.tolist()):
            try:
                if sample != EMPTY_SLOT:
                    key, chosen = self._load_sample(epoch, sample, pixels[row])
                    ids.append(image_id_of(key))
                    captions.append(chosen)
                    continue
            except DamagedSampleError as error:
                bad.append(str(error))
            # Black, and not a copy of a neighbour: where all pictures are one, batch
            # normalisation divides by nothing and the gradient overflows (docs/log.md).
            pixels[row] = 0
            captions.append([])
        tokens, weights = collate_captions(captions, self.config.captions_per_image)
        return Batch(torch.from_numpy(pixels), tokens, weights, ids, bad)

    def _load_sample(self, epoch: int, sample: int, out: np.ndarray) -> tuple[str, list[list[int]]]:
        """Crop a sample's picture into `out`. Returns its key and the captions drawn."""
        key, image, meta = self.shards.read(sample)
        draw = keyed_bytes(24, "crop", self.seed, epoch, key)
        try:
            training_crop(image, out, self.config.min_crop, draw)
        except ValueError as error:
            raise self.shards.damaged(sample, str(error)) from None
        chosen = self._choose(meta["tokens"], epoch, key)
        top = max(chain.from_iterable(chosen), default=0)
        if top >= self.vocabulary:  # on a GPU such a token would end all with a riddle
            raise self.shards.damaged(sample, f"token {top} of a vocabulary of {self.vocabulary}")
        return key, chosen

    def _choose(self, tokens: list[list[int]], epoch: int, key: str) -> list[list[int]]:
        """K of an image's captions, another draw each epoch; all of them where it has no more."""
        if len(tokens) <= self.config.captions_per_image:
            return tokens
        chosen = keyed_permutation(len(tokens), "captions", self.seed, epoch, key)
        return [tokens[i] for i in chosen[: self.config.captions_per_image]]


def collate_captions(
    captions: list[list[list[int]]], num_captions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token lists into one tensor.

    Args:
        captions: for each of B images at most K lists of token ids, without marks.
        num_captions: K.
    Returns:
        tokens (B, K, L) int64 with BOS and EOS, and weights (B, K) float32, 1 for a real caption.
    """
    longest = max((len(ids) for image in captions for ids in image), default=0)
    tokens = np.full((len(captions), num_captions, longest + 2), PAD, dtype=np.int64)
    weights = np.zeros((len(captions), num_captions), dtype=np.float32)
    for row, image in enumerate(captions):
        for column, ids in enumerate(image):
            tokens[row, column, 0] = BOS
            tokens[row, column, 1 : len(ids) + 1] = ids
            tokens[row, column, len(ids) + 1] = EOS
            weights[row, column] = 1.0
    return torch.from_numpy(tokens), torch.from_numpy(weights)


class EvalDataset(Dataset[EvalBatch]):
    """Batches of pictures to caption: the index is an array of sample numbers."""

    def __init__(self, shards: ShardFolder, image_size: int) -> None:
        self.shards = shards
        self.image_size = image_size

    def __getitem__(self, samples: np.ndarray) -> EvalBatch:
        images = torch.zeros((len(samples), self.image_size, self.image_size, 3), dtype=torch.uint8)
        pixels = images.numpy()
        ids: list[ImageId] = []
        references: list[list[str]] = []
        bad: list[str] = []
        for sample in samples.tolist():
            try:
                key, image, meta = self.shards.read(sample)
                center_crop(image, pixels[len(ids)])
            except DamagedSampleError as error:
                bad.append(str(error))
            except ValueError as error:
                bad.append(str(self.shards.damaged(sample, str(error))))
            else:
                ids.append(image_id_of(key))
                references.append(meta["captions"])
        return EvalBatch(images[: len(ids)], ids, references, bad)
