"""Encoder and decoder as one module.

B images, K captions an image, N = B*K captions, S image side in pixels, H width of the states,
L tokens, V vocabulary
"""

import torch
from torch import nn

from pipeline.config.model import ModelConfig
from pipeline.model.decoders import DECODERS, make_decoder
from pipeline.model.encoders.image_encoder import ImageEncoder
from pipeline.model.protocols import Decoded, Decoder


class Captioner(nn.Module):
    """An encoder and a decoder of the same model width D."""

    decoder: Decoder

    def __init__(self, config: ModelConfig, vocab_size: int, pretrained: bool = True) -> None:
        """
        Args:
            vocab_size: V.
            pretrained: whether to load the encoder's `weights`. A checkpoint brings its own.
        Raises:
            ValueError: as `ImageEncoder`.
        """
        super().__init__()
        output = DECODERS[config.decoder.kind].output
        self.encoder = ImageEncoder(config.encoder, config.dim, output, pretrained)
        self.decoder = make_decoder(config.decoder, config.dim, vocab_size)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> Decoded:
        """The decoder's states by teacher forcing. An image is encoded once for its K captions.

        Args:
            images: (B, S, S, 3) uint8.
            tokens: (B, K, L) int64, BOS first, right-padded.
        Returns:
            `decoder.to_words` of the states of position l scores the token after tokens[..., l].
        """
        return self.decoder(self.encoder(images), tokens)
