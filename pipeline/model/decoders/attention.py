"""Additive attention over the grid of an image, for all captions of the image at once.

B images, K captions an image, P grid positions, D model width, H width of the queries,
A width of the attention
"""

import torch
from torch import nn


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
        sums = keys[:, None] + self.to_query(queries)[:, :, None]
        scores: torch.Tensor = self.to_score(sums.tanh_())[..., 0]
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
