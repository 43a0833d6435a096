"""The training loss, as a sum and a count: only the caller knows the global batch to divide by.

N captions, L tokens, V vocabulary
"""

import torch
from torch.nn import functional

from shards.tokenizer import PAD


def caption_loss(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy over the valid tokens.

    Args:
        logits: (N, L, V) float, unnormalised.
        targets: (N, L) int64; PAD positions do not count.
        weights: (N,) float; 0 for a slot that only keeps ranks in step.
    Returns:
        loss_sum: () float, nats. num_tokens: () float.
    Raises:
        ValueError: the (N, L) parts differ.
    Source: Vinyals et al., Show and Tell, arXiv:1411.4555, eq. 10.
    """
    if logits.shape[:2] != targets.shape or weights.shape != targets.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)} and weights "
            f"{tuple(weights.shape)} do not fit"
        )
    losses = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="none"
    ).view_as(targets)
    return (losses.sum(dim=1) * weights).sum(), count_tokens(targets, weights)


def count_tokens(targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The tokens that count: () float. targets: (..., L) int64; weights: (...) float."""
    return ((targets != PAD).sum(dim=-1) * weights).sum()
