"""What travels from the loader to the trainer.

B images, K captions an image, L tokens, S image side in pixels
"""

from typing import NamedTuple

import numpy as np
import torch

from pipeline.runtime.errors import ExplainedError
from shards.tokenizer import BOS, EOS, PAD

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
