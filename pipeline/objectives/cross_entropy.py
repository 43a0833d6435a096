"""Cross-entropy of the next token, summed over a micro-batch.

B images, K captions an image, N = B*K captions, S image side in pixels, L tokens, V vocabulary
"""

from typing import NamedTuple

import torch
from torch.nn import functional

from pipeline.data.batch import Batch
from pipeline.objectives.objective import Loss, Objective, Prepared
from shards.tokenizer import PAD


class Inputs(NamedTuple):
    """What cross-entropy needs of a micro-batch."""

    images: torch.Tensor  # (B, S, S, 3) uint8
    tokens: torch.Tensor  # (B, K, L + 1) int64: BOS, words, EOS, then PAD
    weights: torch.Tensor  # (B, K) float32: 0 for an empty slot


class CrossEntropy(Objective):
    """The negative log-likelihood of the reference captions, in nats; the count is of tokens.

    Source: Vinyals et al., Show and Tell, arXiv:1411.4555, eq. 10.
    """

    def prepare(self, batch: Batch) -> Prepared:
        """Count the tokens that are to be predicted."""
        count = count_tokens(batch.tokens[..., 1:], batch.weights)
        return Prepared(float(count), Inputs(batch.images, batch.tokens, batch.weights))

    def forward(self, inputs: Inputs) -> Loss:
        """Teacher forcing: from each prefix of a reference caption to the token after it."""
        images, tokens, weights = inputs
        states = self.captioner(images, tokens[..., :-1])
        scores = self.captioner.decoder.to_words(states)
        return Loss(caption_loss(scores, tokens[..., 1:].flatten(0, 1), weights.flatten()), {})


def caption_loss(
    scores: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Summed cross-entropy over the valid tokens.

    Args:
        scores: (N, L, V) float, unnormalised.
        targets: (N, L) int64; PAD positions do not count.
        weights: (N,) float; 0 for an empty slot.
    Returns:
        () float, nats.
    """
    losses = functional.cross_entropy(
        scores.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="none"
    ).view_as(targets)
    return (losses.sum(dim=1) * weights).sum()


def count_tokens(targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Number of tokens that count: () float. targets: (..., L) int64; weights: (...) float."""
    return ((targets != PAD).sum(dim=-1) * weights).sum()
