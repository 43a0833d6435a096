"""The protocols that every encoder and every decoder follows.

B images, K captions an image, N = B*K captions, P grid positions, S image side in pixels,
D model width, H width of a decoder's states, L tokens, V vocabulary
"""

from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import nn


class Encoded(NamedTuple):
    """A batch of images as an encoder gives it, one row an image however many captions it has."""

    pooled: torch.Tensor  # (B, D) float: each image as one vector
    grid: torch.Tensor | None = None  # (B, P, D) float: each image by position, if it has any


class Decoded(NamedTuple):
    """Captions as a decoder gives them by teacher forcing."""

    states: torch.Tensor  # (N, L, H) float
    attention: torch.Tensor | None = None  # (N, L, P) float: where it looked for each token


class Encoder(Protocol):
    """Images to vectors."""

    def __call__(self, images: torch.Tensor) -> Encoded:
        """images: (B, S, S, 3) uint8."""


class Decoder(Protocol):
    """Encoded images and the tokens so far to the scores of the next token.

    The rows of the N captions are grouped by image: row n belongs to image n // K. A decoder
    keeps values that depend on the image alone, such as the keys of an attention, once for each
    image in the state; the K rows of the image share them.
    """

    output: ClassVar[Literal["pooled", "grid"]]  # what of the encoded images it reads
    attention_penalty: float  # see DecoderConfig; 0 where the objective adds none
    to_words: nn.Linear  # states (..., H) to scores (..., V); its input needs no further dropout

    def __call__(self, encoded: Encoded, tokens: torch.Tensor) -> Decoded:
        """Teacher forcing: the states of all positions at once.

        Args:
            encoded: B images.
            tokens: (B, K, L) int64, BOS first, right-padded. Padding changes no state before it.
        Returns:
            `to_words` of the states of position l scores the token that follows tokens[..., l].
        """

    def start(self, encoded: Encoded) -> Any:
        """The state before the first token: one caption an image, N = B."""

    def step(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Advance by one token.

        Args:
            tokens: (N,) int64, the tokens chosen last; BOS at the beginning.
            state: from `start`, `reorder` or the step before, for N captions.
        Returns:
            (N, H) float, for `to_words`, and the new state.
        """

    def reorder(self, state: Any, index: torch.Tensor) -> Any:
        """The state of chosen captions, for beams and for several samples of an image.

        Args:
            state: for N captions.
            index: (N',) int64, for each new row the row whose state it continues, a row of the same
                image. The images keep their order, with N' / B rows each.
        Returns:
            A state for N' captions.
        """

    def attention(self, state: Any) -> torch.Tensor | None:
        """Where the last step looked.

        Args:
            state: from `step`, for N captions.
        Returns:
            (N, P) float: the weight of each position; None for a decoder that does not look. The
            weights of a caption add up to 1. Where a sentinel has a share, they add up to the rest.
        """
