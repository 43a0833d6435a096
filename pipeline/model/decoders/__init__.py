"""Encoded images to captions: the kinds of decoders, by their names in the configuration."""

from typing import Any

from pipeline.config.model import DecoderConfig
from pipeline.model.decoders.adaptive import AdaptiveDecoder
from pipeline.model.decoders.att2in import Att2inDecoder
from pipeline.model.decoders.recurrent import RecurrentDecoder
from pipeline.model.decoders.soft_attention import SoftAttentionDecoder
from pipeline.model.decoders.transformer import TransformerDecoder
from pipeline.model.decoders.updown import UpDownDecoder

# Each class is made from (config, dim, vocab_size), and is a `Decoder` of pipeline.model.protocols.
DECODERS: dict[str, Any] = {
    "lstm": RecurrentDecoder,
    "gru": RecurrentDecoder,
    "soft_attention": SoftAttentionDecoder,
    "adaptive": AdaptiveDecoder,
    "att2in": Att2inDecoder,
    "updown": UpDownDecoder,
    "transformer": TransformerDecoder,
}


def make_decoder(config: DecoderConfig, dim: int, vocab_size: int) -> Any:
    """The decoder of `config.kind`, with random weights.

    Args:
        dim: D, width of the encoder's vectors.
        vocab_size: V.
    """
    return DECODERS[config.kind](config, dim, vocab_size)
