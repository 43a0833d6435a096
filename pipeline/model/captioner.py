"""Encoder and decoder as one module.

B images, K captions an image, N = B*K captions, S side in pixels, L tokens, V vocabulary
"""

import torch
from torch import nn

from pipeline.config.model import ModelConfig
from pipeline.model.decoders.recurrent import RecurrentDecoder
from pipeline.model.encoders.torchvision import Encoder


class Captioner(nn.Module):
    """Captions pictures."""

    def __init__(self, config: ModelConfig, vocab_size: int, pretrained: bool = True) -> None:
        """
        Args:
            vocab_size: V.
            pretrained: whether to load the encoder's `weights`; a checkpoint brings its own.
        Raises:
            ValueError: as `Encoder`.
        """
        super().__init__()
        self.encoder = Encoder(config.encoder, config.dim, pretrained)
        self.decoder = RecurrentDecoder(config.decoder, config.dim, vocab_size)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Scores of each next word. An image is encoded once for its K captions.

        Args:
            images: (B, S, S, 3) uint8.
            tokens: (B, K, L) int64, BOS first, right-padded.
        Returns:
            (N, L, V) float.
        """
        vectors = self.encoder(images).repeat_interleave(tokens.shape[1], dim=0)
        logits: torch.Tensor = self.decoder(vectors, tokens.flatten(0, 1))
        return logits
