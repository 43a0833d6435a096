"""Shards -> batches: samples are read, checked, and decoded into one uint8 tensor a batch.

B images, K captions an image, L tokens, M slots of a micro-batch, S image side in pixels
"""

from itertools import chain

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.config.data import DataConfig
from pipeline.data.batch import BadSampleError, Batch, EvalBatch, ImageId, collate_captions
from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import EMPTY_SLOT, keyed_bytes, keyed_permutation
from pipeline.data.transforms import center_crop, training_crop
from shards.format.names import image_id_of


class TrainDataset(Dataset[Batch]):
    """Training micro-batches; the index is an (M, 2) int64 array of slots: epoch and sample."""

    def __init__(self, shards: ShardFolder, config: DataConfig, seed: int) -> None:
        self.shards = shards
        self.config = config
        self.seed = seed
        self.vocabulary = shards.tokenizer.get_vocab_size()

    def __getitem__(self, slots: np.ndarray) -> Batch:
        size = self.config.image_size
        return self.load(slots, np.empty((len(slots), size, size, 3), dtype=np.uint8))

    def load(self, slots: np.ndarray, pixels: np.ndarray) -> Batch:
        """Load the micro-batch of some slots.

        A bad sample becomes an empty slot, and its message is in the batch's `bad`.

        Args:
            slots: (M, 2) int64, epoch and sample number; EMPTY_SLOT twice in an empty slot.
            pixels: (M, S, S, 3) uint8; receives the images and is the memory of `Batch.images`.
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
            except BadSampleError as error:
                bad.append(str(error))
            # An empty slot is black, not a copy of its neighbour: in a batch of equal images the
            # variance is 0, and batch normalisation's gradient overflows (docs/log.md).
            pixels[row] = 0
            captions.append([])
        tokens, weights = collate_captions(captions, self.config.captions_per_image)
        return Batch(torch.from_numpy(pixels), tokens, weights, ids, bad)

    def _load_sample(self, epoch: int, sample: int, out: np.ndarray) -> tuple[str, list[list[int]]]:
        """Crop a sample's image into `out`. Returns its key and the captions drawn."""
        key, image, meta = self.shards.read(sample)
        draw = keyed_bytes(24, "crop", self.seed, epoch, key)
        try:
            training_crop(image, out, self.config.min_crop, draw)
        except ValueError as error:
            raise self.shards.bad_sample(sample, str(error)) from None
        chosen = self._choose_captions(meta["tokens"], epoch, key)
        largest = max(chain.from_iterable(chosen), default=0)
        if largest >= self.vocabulary:  # on a GPU the error would not say what is wrong
            raise self.shards.bad_sample(
                sample, f"token {largest} of a vocabulary of {self.vocabulary}"
            )
        return key, chosen

    def _choose_captions(self, tokens: list[list[int]], epoch: int, key: str) -> list[list[int]]:
        """K of an image's captions, drawn anew in each epoch; all of them if it has at most K."""
        if len(tokens) <= self.config.captions_per_image:
            return tokens
        chosen = keyed_permutation(len(tokens), "captions", self.seed, epoch, key)
        return [tokens[i] for i in chosen[: self.config.captions_per_image]]


class EvalDataset(Dataset[EvalBatch]):
    """Batches of images to caption; the index is a (B,) array of sample numbers."""

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
            except BadSampleError as error:
                bad.append(str(error))
            except ValueError as error:
                bad.append(str(self.shards.bad_sample(sample, str(error))))
            else:
                ids.append(image_id_of(key))
                references.append(meta["captions"])
        return EvalBatch(images[: len(ids)], ids, references, bad)
