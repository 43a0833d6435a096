"""Shards -> batches: samples are read, checked, and put into one tensor a batch.

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
from shards.format.features import read_view
from shards.format.names import image_id_of


class TrainDataset(Dataset[Batch]):
    """Training micro-batches; the index is an (M, 2) int64 array of slots: epoch and sample."""

    def __init__(self, shards: ShardFolder, config: DataConfig, seed: int) -> None:
        self.shards = shards
        self.config = config
        self.seed = seed
        self.vocabulary = shards.tokenizer.get_vocab_size()

    def __getitem__(self, slots: np.ndarray) -> Batch:
        return self.load(slots, self.shards.new_inputs(len(slots), self.config.image_size))

    def load(self, slots: np.ndarray, inputs: np.ndarray) -> Batch:
        """Load the micro-batch of some slots.

        A bad sample becomes an empty slot, and its message is in the batch's `bad`.

        Args:
            slots: (M, 2) int64, epoch and sample number; EMPTY_SLOT twice in an empty slot.
            inputs: as `ShardFolder.new_inputs` makes them; receives the images or their features,
                and is the memory of `Batch.images`.
        """
        assert len(slots) == len(inputs)
        ids: list[ImageId] = []
        captions: list[list[list[int]]] = []
        bad: list[str] = []
        for row, (epoch, sample) in enumerate(slots.tolist()):
            try:
                if sample != EMPTY_SLOT:
                    key, chosen = self._load_sample(epoch, sample, inputs[row])
                    ids.append(image_id_of(key))
                    captions.append(chosen)
                    continue
            except BadSampleError as error:
                bad.append(str(error))
            # An empty slot is black, not a copy of its neighbour: in a batch of equal images the
            # variance is 0, and batch normalisation's gradient overflows (docs/log.md).
            inputs[row] = 0
            captions.append([])
        tokens, weights = collate_captions(captions, self.config.captions_per_image)
        return Batch(torch.from_numpy(inputs), tokens, weights, ids, bad)

    def _load_sample(self, epoch: int, sample: int, out: np.ndarray) -> tuple[str, list[list[int]]]:
        """Put a sample's image or features into `out`. Returns its key and the captions drawn."""
        key, data, meta = self.shards.read(sample)
        try:
            self._prepare(data, epoch, key, out)
        except ValueError as error:
            raise self.shards.bad_sample(sample, str(error)) from None
        chosen = self._choose_captions(meta["tokens"], epoch, key)
        largest = max(chain.from_iterable(chosen), default=0)
        if largest >= self.vocabulary:  # on a GPU the error would not say what is wrong
            raise self.shards.bad_sample(
                sample, f"token {largest} of a vocabulary of {self.vocabulary}"
            )
        return key, chosen

    def _prepare(self, data: bytes, epoch: int, key: str, out: np.ndarray) -> None:
        """A random crop of an image, or one of its views as stored features."""
        if self.shards.features:
            draw = keyed_bytes(8, "view", self.seed, epoch, key)
            view = int.from_bytes(draw, "little") % self.shards.features.views
            read_view(data, view, out)
        elif self.config.crop == "center":
            center_crop(data, out)
        else:
            draw = keyed_bytes(24, "crop", self.seed, epoch, key)
            training_crop(data, out, self.config.min_crop, draw)

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
        inputs = self.shards.new_inputs(len(samples), self.image_size)
        ids: list[ImageId] = []
        references: list[list[str]] = []
        bad: list[str] = []
        for sample in samples.tolist():
            try:
                key, data, meta = self.shards.read(sample)
                if self.shards.features:
                    read_view(data, 0, inputs[len(ids)])
                else:
                    center_crop(data, inputs[len(ids)])
            except BadSampleError as error:
                bad.append(str(error))
            except ValueError as error:
                bad.append(str(self.shards.bad_sample(sample, str(error))))
            else:
                ids.append(image_id_of(key))
                references.append(meta["captions"])
        return EvalBatch(torch.from_numpy(inputs[: len(ids)]), ids, references, bad)
