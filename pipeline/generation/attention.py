"""Where a decoder looked while it generated captions.

B images, N captions an image, T tokens at most, P grid positions
"""

from typing import Any

import torch

from pipeline.generation.captions import start_rows
from shards.tokenizer import PAD


@torch.no_grad()
def attention_maps(decoder: Any, encoded: Any, tokens: torch.Tensor) -> torch.Tensor | None:
    """The attention of each token of captions, which are read again token by token.

    So the searches, which drop most of the captions that they begin, need not carry maps along.

    Args:
        decoder: a `Decoder`.
        encoded: B images.
        tokens: (B, N, T) int64, without BOS, padded with PAD.
    Returns:
        (B, N, T, P) float32: the weight of each position for the choice of each token, 0 at PAD;
        None for a decoder without attention.
    """
    state, last = start_rows(decoder, encoded, tokens.shape[1])
    maps = []
    for step in range(tokens.shape[2]):
        _, state = decoder.step(last, state)
        weights = decoder.attention(state)
        if weights is None:
            return None
        maps.append(weights.float())
        last = tokens[..., step].flatten()
    stacked = torch.stack(maps, dim=1).unflatten(0, tokens.shape[:2])
    masked: torch.Tensor = stacked.masked_fill((tokens == PAD)[..., None], 0.0)
    return masked
