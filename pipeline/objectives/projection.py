"""Cross-entropy over the vocabulary, without the scores of all positions in memory at once.

T valid tokens of a micro-batch, H width of the states, V vocabulary
"""

import math
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK_SCORES = 1 << 22  # scores of a chunk: 16 MiB in float32; smaller ones are slower on a CPU

# In float16, sums over a chunk must stay well below the largest number, 65504.
LARGEST_SUM = 1 << 14


def cross_entropy(
    states: torch.Tensor,
    to_words: nn.Linear,
    targets: torch.Tensor,
    weights: torch.Tensor,
    smoothing: float = 0.0,
    chunk_scores: int = CHUNK_SCORES,
) -> torch.Tensor:
    """Weighted sum of the cross-entropies of tokens, with label smoothing.

    States are projected to the vocabulary chunk by chunk, and each chunk's gradients are computed
    while its scores are at hand. That takes the three matrix products of a full projection, and no
    more memory than the gradients and one chunk of scores. Under autocast the products are computed
    in its type; softmax, loss and the sums over chunks are in the type of the weights.

    Args:
        states: (T, H) float.
        to_words: H to V, with a bias.
        targets: (T,) int64.
        weights: (T,) float.
        smoothing: share of the target distribution that is spread evenly over the vocabulary
            (Szegedy et al., Rethinking the Inception Architecture, arXiv:1512.00567, section 7).
        chunk_scores: number of scores that exist at a time; at least V do.
    Returns:
        () float, nats. It can be differentiated once, by states and by the weights of `to_words`.
    """
    device_type = states.device.type
    product_type = to_words.weight.dtype
    if torch.is_autocast_enabled(device_type):
        product_type = torch.get_autocast_dtype(device_type)
    num_rows = max(chunk_scores // to_words.out_features, 1)
    with torch.autocast(device_type, enabled=False):  # the types are chosen here
        loss: torch.Tensor = _ChunkedCrossEntropy.apply(
            states,
            to_words.weight,
            to_words.bias,
            targets,
            weights,
            smoothing,
            num_rows,
            product_type,
        )
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        smoothing: float,
        num_rows: int,
        product_type: torch.dtype,
    ) -> torch.Tensor:
        # Gradients are computed `scale` times as large, so that float16 holds small probabilities.
        # A power of two changes no digit of any other type.
        scale = 2.0 ** math.floor(math.log2(LARGEST_SUM / max(min(num_rows, len(states)), 1)))
        matrix, offset = weight.to(product_type), bias.to(product_type)
        grad_states = torch.empty_like(states, dtype=weight.dtype)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        loss = weight.new_zeros(())
        for start in range(0, len(states), num_rows):
            rows = slice(start, start + num_rows)
            inputs, words = states[rows].to(product_type), targets[rows, None]
            scores = torch.addmm(offset, inputs, matrix.t()).to(weight.dtype)
            log_likelihoods = functional.log_softmax(scores, dim=1)
            expected = log_likelihoods.gather(1, words)[:, 0]
            if smoothing:
                expected = expected * (1 - smoothing) + log_likelihoods.mean(dim=1) * smoothing
            loss -= (expected * weights[rows]).sum()
            # d loss / d scores = (softmax - targets) * weight, in the memory of the softmax.
            slopes = log_likelihoods.exp_()
            slopes.scatter_add_(1, words, slopes.new_full(words.shape, smoothing - 1.0))
            if smoothing:
                slopes -= smoothing / slopes.shape[1]
            slopes *= (weights[rows, None] * scale).to(weight.dtype)
            grad_bias += slopes.sum(dim=0)
            factors = slopes.to(product_type)
            grad_states[rows] = factors @ matrix
            grad_weight += factors.t() @ inputs
        ctx.save_for_backward(grad_states, grad_weight, grad_bias)
        ctx.scale = scale
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        factor = grad_loss / ctx.scale
        gradients = [gradient * factor for gradient in ctx.saved_tensors]
        return *gradients, None, None, None, None, None
