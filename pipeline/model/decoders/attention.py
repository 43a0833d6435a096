"""Additive attention over the grid of an image, for all captions of the image at once.

B images, K captions an image, P grid positions, D model width, H width of the queries,
A width of the attention
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

# Bytes of the hidden layer that exist at a time on a CPU, so that they stay in its cache.
CHUNK_BYTES = 1 << 21


class AdditiveAttention(nn.Module):
    """A two-layer perceptron scores each position: w . tanh(W_v v_i + W_h h).

    The keys W_v v_i depend on the image alone. They are computed once an image and shared by its
    captions and beams without a copy.
    Source: Bahdanau et al., arXiv:1409.0473, appendix A.1.2.
    """

    def __init__(self, dim: int, query_dim: int, attention_dim: int) -> None:
        """
        Args:
            dim: D.
            query_dim: H.
            attention_dim: A.
        """
        super().__init__()
        self.to_keys = nn.Linear(dim, attention_dim)
        self.to_query = nn.Linear(query_dim, attention_dim, bias=False)
        self.to_score = nn.Linear(attention_dim, 1, bias=False)

    def scores(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """How well each position answers each query, not yet normalised.

        Args:
            queries: (B, K, H) float.
            keys: (B, P, A) float, from `to_keys`.
        Returns:
            (B, K, P) float32, or float64 from such queries.
        """
        weight = self.to_score.weight[0]
        scores: torch.Tensor = _Scores.apply(self.to_query(queries), keys, weight)
        return scores.to(queries.dtype)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Average the values with the weights that the queries give them.

        Args:
            queries: (B, K, H) float.
            keys: (B, P, A) float, from `to_keys`.
            values: (B, P, D) float.
        Returns:
            Contexts (B, K, D) and weights (B, K, P), float.
        """
        weights = self.scores(queries, keys).softmax(dim=2)
        return weights @ values.to(weights.dtype), weights


class _Scores(torch.autograd.Function):
    """w . tanh(k_i + q) of each query and key of an image.

    The hidden layer, P times as large as the queries, is computed again for the gradients instead
    of being kept, and on a CPU a few images at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: torch.Tensor, keys: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """(B, K, A) queries, (B, P, A) keys and (A,) weights -> (B, K, P), in the keys' type."""
        ctx.save_for_backward(queries, keys, weight)
        parts = [
            (hidden.view(-1, hidden.shape[3]) @ weight.to(hidden.dtype)).view(hidden.shape[:3])
            for hidden, _ in _hidden_layer(queries, keys)
        ]
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """With h the hidden layer, the gradient of its input is grad * w * (1 - h * h)."""
        queries, keys, weight = ctx.saved_tensors
        grad_queries, grad_keys = torch.empty_like(queries), torch.empty_like(keys)
        grad_weight = torch.zeros_like(weight)
        for hidden, images in _hidden_layer(queries, keys):
            part = grad[images]
            grad_weight += part.flatten() @ hidden.view(-1, hidden.shape[3])
            torch.ops.aten.tanh_backward.grad_input(part[..., None], hidden, grad_input=hidden)
            torch.sum(hidden, dim=2, out=grad_queries[images])
            torch.sum(hidden, dim=1, out=grad_keys[images])
        factor = weight.to(keys.dtype)
        return grad_queries.mul_(factor), grad_keys.mul_(factor), grad_weight


def _hidden_layer(
    queries: torch.Tensor, keys: torch.Tensor
) -> Iterator[tuple[torch.Tensor, slice]]:
    """tanh(k_i + q), (b, K, P, A) of b images at a time, and which images these are."""
    num_images = len(keys)
    if not keys.is_cuda:
        image_bytes = queries.shape[1] * keys[0].nbytes
        num_images = max(CHUNK_BYTES // max(image_bytes, 1), 1)
    for start in range(0, len(keys), num_images):
        images = slice(start, start + num_images)
        yield (keys[images, None] + queries[images, :, None]).tanh_(), images
