"""Captions out of any decoder that has `start` and `step`.

N captions, D model width, T tokens at the most, V vocabulary
"""

from typing import Any, Protocol

import torch

from shards.tokenizer import BOS, EOS, PAD


class Decoder(Protocol):
    """What decoding needs of a decoder."""

    def start(self, images: torch.Tensor) -> Any:
        """(N, D) float -> the state before the first word."""

    def step(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """(N,) int64 and a state -> (N, V) float scores of the next word, and the next state."""


@torch.no_grad()
def greedy(decoder: Decoder, images: torch.Tensor, max_tokens: int) -> torch.Tensor:
    """The likeliest word each time, until every caption has ended or has T words.

    Args:
        images: (N, D) float.
        max_tokens: T.
    Returns:
        (N, up to T) int64, without BOS; EOS where a caption ended, PAD after it.
    """
    tokens = torch.full((len(images),), BOS, dtype=torch.int64, device=images.device)
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    state = decoder.start(images)
    said = []
    for _ in range(max_tokens):
        logits, state = decoder.step(tokens, state)
        logits[:, [PAD, BOS]] = -torch.inf  # neither is a word
        tokens = logits.argmax(dim=1).masked_fill(ended, PAD)
        said.append(tokens)
        ended |= tokens == EOS
        if bool(ended.all()):
            break
    return torch.stack(said, dim=1)
