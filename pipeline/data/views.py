"""Images on their way into stored features: samples of a data set, decoded into views.

Loader workers import this module, so it imports no model.

B images, V views an image, S image side in pixels
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import keyed_bytes
from pipeline.data.transforms import center_crop, training_crop
from shards.format.features import FeaturePolicy


class ViewBatch(NamedTuple):
    """Some samples of one shard."""

    shard: int
    pixels: torch.Tensor  # (B * V, S, S, 3) uint8
    keys: list[str]
    metas: list[dict[str, Any]]
    error: Exception | None = None  # why it is not complete; raised by the process that encodes


class ViewDataset(Dataset[ViewBatch]):
    """Batches of images as they are encoded, with their views; the index is an array of samples."""

    def __init__(self, source: ShardFolder, policy: FeaturePolicy) -> None:
        self.source, self.policy = source, policy
        self.starts = source.index.shard_starts

    def __getitem__(self, samples: np.ndarray) -> ViewBatch:
        size, views = self.policy.image_size, self.policy.views
        pixels = np.empty((len(samples) * views, size, size, 3), dtype=np.uint8)
        shard = int(np.searchsorted(self.starts, samples[0], side="right")) - 1
        batch = ViewBatch(shard, torch.from_numpy(pixels), [], [])
        try:
            for row, sample in enumerate(samples.tolist()):
                key, meta = self._load(sample, pixels[row * views : (row + 1) * views])
                batch.keys.append(key)
                batch.metas.append(meta)
        except (ValueError, OSError) as error:  # torch would put a stack trace into its message
            return batch._replace(error=error)
        return batch

    def _load(self, sample: int, out: np.ndarray) -> tuple[str, dict[str, Any]]:
        key, image, meta = self.source.read(sample)
        try:
            make_views(image, key, self.policy, out)
        except ValueError as error:
            raise self.source.bad_sample(sample, str(error)) from None
        return key, meta


def make_views(image: bytes, key: str, policy: FeaturePolicy, out: np.ndarray) -> None:
    """The views of an image: its center crop, then random crops that its key determines.

    Args:
        image: a JPEG.
        key: of its sample.
        out: (V, S, S, 3) uint8; receives the views.
    Raises:
        ValueError: the JPEG does not decode in full.
    """
    center_crop(image, out[0])
    for view in range(1, policy.views):
        draw = keyed_bytes(24, "feature view", policy.seed, view, key)
        training_crop(image, out[view], policy.min_crop, draw)
        if policy.flip and view % 2:
            out[view] = out[view, :, ::-1].copy()
