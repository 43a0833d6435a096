"""Greedy decoding.

B images, T tokens at most, V vocabulary
"""

import torch

from pipeline.model.protocols import Decoder, Encoded
from shards.tokenizer import BOS, EOS, PAD


@torch.no_grad()
def greedy(decoder: Decoder, encoded: Encoded, max_tokens: int) -> torch.Tensor:
    """The most likely token at each step, until every caption has ended or has T tokens.

    Args:
        encoded: B images.
        max_tokens: T.
    Returns:
        (B, up to T) int64, without BOS; EOS where a caption ended, PAD after it.
    """
    images = encoded.pooled
    tokens = torch.full((len(images),), BOS, dtype=torch.int64, device=images.device)
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    state = decoder.start(encoded)
    chosen = []
    for _ in range(max_tokens):
        states, state = decoder.step(tokens, state)
        scores = decoder.to_words(states)
        scores[:, [PAD, BOS]] = -torch.inf  # neither is part of a caption
        tokens = scores.argmax(dim=1).masked_fill(ended, PAD)
        chosen.append(tokens)
        ended |= tokens == EOS
        if bool(ended.all()):
            break
    return torch.stack(chosen, dim=1)
