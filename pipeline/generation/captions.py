"""What all methods of generation share: their result, and the scores of the next token.

B images, N captions an image, M captions in all, T tokens at most, P grid positions, V vocabulary
"""

from typing import Any, NamedTuple

import torch

from pipeline.generation.constraints import Constraints
from pipeline.model.protocols import Decoder
from shards.tokenizer import BOS, PAD

CHECK_EVERY = 4  # steps between two checks on a GPU of whether all captions have ended


class Captions(NamedTuple):
    """N captions of each image; those of a beam search are in order, the best first."""

    tokens: torch.Tensor  # (B, N, up to T) int64, without BOS; EOS where a caption ended, then PAD
    log_probs: torch.Tensor  # (B, N, up to T) float32: the model's, of each token; 0 at PAD
    scores: torch.Tensor  # (B, N) float32: -inf where an image has fewer than N captions
    attention: torch.Tensor | None = None  # (B, N, up to T, P) float32, if it was asked for


def trimmed(tokens: torch.Tensor, log_probs: torch.Tensor, scores: torch.Tensor) -> Captions:
    """Captions without the positions that are padding in all of them."""
    length = max(int((tokens != PAD).sum(dim=2).max()), 1)
    return Captions(tokens[..., :length], log_probs[..., :length], scores)


def start_rows(decoder: Decoder, encoded: Any, rows_per_image: int) -> tuple[Any, torch.Tensor]:
    """The state before the first token for several rows an image, and BOS for each row."""
    num_images, device = len(encoded.pooled), encoded.pooled.device
    state = decoder.start(encoded)
    if rows_per_image > 1:
        images = torch.arange(num_images, device=device)
        state = decoder.reorder(state, images.repeat_interleave(rows_per_image))
    first = torch.full((num_images * rows_per_image,), BOS, dtype=torch.int64, device=device)
    return state, first


def next_scores(
    decoder: Decoder,
    states: torch.Tensor,
    constraints: Constraints,
    tokens: torch.Tensor,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of the next token under the constraints.

    Args:
        states: of M captions, as `decoder.step` gives them.
        tokens: (M, T) int64: the captions so far; positions from `step` on are not read.
        step: number of tokens that each caption has.
    Returns:
        scores: (M, V) float32, -inf for tokens that must not follow. A score less the norm is the
            model's log-probability of the token, also where constraints forbid others.
        norm: (M,) float32.
    """
    scores = decoder.to_words(states).float()
    scores[:, PAD : BOS + 1] = -torch.inf  # neither is part of a caption; their ids are 0 and 1
    norm = scores.logsumexp(dim=1)
    constraints.mask(scores, tokens, step)
    return scores, norm


def time_to_check(step: int, device: torch.device) -> bool:
    """Whether to look if all captions have ended, after a step.

    On a GPU a look waits for the device. Further steps change nothing in captions that have ended.
    """
    return device.type == "cpu" or step % CHECK_EVERY == CHECK_EVERY - 1
