"""The layers between backbone and decoder, which are always trained.

B images, F features of the backbone, P grid positions, D model width
"""

import torch
from torch import nn

from pipeline.model.protocols import Encoded


class PooledHead(nn.Sequential):
    """Two linear layers with PReLU and dropout between, then BatchNorm: one vector an image.

    He initialisation keeps the scale of the features, and BatchNorm keeps the image vector at the
    scale of the token embeddings throughout training. Without both, the decoder, which sees the
    image once and a token at every step, learns to ignore the image (docs/log.md).
    Source: the perceptron is the one of the article "Captioning Images with CNN and RNN, using
        PyTorch"; He et al., Delving Deep into Rectifiers, arXiv:1502.01852, eq. 10.
    """

    def __init__(self, num_features: int, hidden_dim: int, dim: int, dropout: float) -> None:
        """
        Args:
            num_features: F.
            dim: D.
        """
        first, last = nn.Linear(num_features, hidden_dim), nn.Linear(hidden_dim, dim)
        for layer in (first, last):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        super().__init__(first, nn.PReLU(), nn.Dropout(dropout), last, nn.BatchNorm1d(dim))

    def forward(self, features: torch.Tensor) -> Encoded:
        """(B, F) float -> `pooled` alone."""
        return Encoded(super().forward(features))


class GridHead(nn.Sequential):
    """A linear layer, ReLU and dropout at each position; the image vector is their mean."""

    def __init__(self, num_features: int, dim: int, dropout: float) -> None:
        """
        Args:
            num_features: F.
            dim: D.
        """
        project = nn.Linear(num_features, dim)
        nn.init.kaiming_normal_(project.weight, nonlinearity="relu")
        nn.init.zeros_(project.bias)
        super().__init__(project, nn.ReLU(), nn.Dropout(dropout))

    def forward(self, features: torch.Tensor) -> Encoded:
        """(B, P, F) float -> `grid`, and `pooled` as the mean over its positions."""
        grid = super().forward(features)
        return Encoded(grid.mean(dim=1), grid)
