"""What the loader hands to the trainer and to evaluation.

B images, K captions an image, L tokens, S image side in pixels
"""

from typing import NamedTuple

import numpy as np
import torch

from pipeline.runtime.errors import ExplainedError
from shards.tokenizer import BOS, EOS, PAD

ImageId = int | str


class BadSampleError(ValueError):
    """A packed sample fails a check when it is read; the message names its tar and key."""


class Batch(NamedTuple):
    """A micro-batch of training samples, on its way from the loader to the device."""

    images: torch.Tensor  # (B, S, S, 3) uint8, or stored features (B, P, F) or (B, F) float
    tokens: torch.Tensor  # (B, K, L) int64: BOS, words, EOS, then PAD
    weights: torch.Tensor  # (B, K) float32: 0 for a caption that only fills the tensor up
    ids: list[ImageId]  # of the images, in slot order; none for empty slots
    bad: list[str]  # a message for each bad sample that was left out


class EvalBatch(NamedTuple):
    """Images to caption, with their reference captions."""

    images: torch.Tensor  # as of `Batch`
    ids: list[ImageId]
    references: list[list[str]]  # raw captions of each image
    bad: list[str]  # a message for each bad sample that was left out


class TooManyBadError(ExplainedError, RuntimeError):
    """There are more bad samples than the limit allows."""


def check_bad(num_bad: int, max_bad: float, num_samples: int, latest: list[str]) -> None:
    """Stop if the share of bad samples exceeds the limit.

    Args:
        num_bad: bad samples so far, over all ranks.
        max_bad: the limit as a share of the samples, 0 to 1.
        num_samples: the number of samples that the share refers to.
        latest: messages of bad samples that this process met; the error quotes the first.
    Raises:
        TooManyBadError: says how many there are, and what to do.
    """
    if num_bad > max_bad * num_samples:
        noun = "bad sample" if num_bad == 1 else "bad samples"
        quoted = f", for example {latest[0]}" if latest else ""
        raise TooManyBadError(
            f"{num_bad:,} {noun} of {num_samples:,}, more than max_bad ({max_bad:.2%}) "
            f"allows{quoted}. Repair the shards, or set a larger max_bad to continue without these "
            "samples"
        )


def collate_captions(
    captions: list[list[list[int]]], num_captions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token lists into one tensor.

    Args:
        captions: for each of B images at most K lists of token ids, without BOS and EOS.
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
