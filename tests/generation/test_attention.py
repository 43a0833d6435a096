"""Attention maps of finished captions."""

from typing import Any

import torch
from support.decoders import random_decoder, random_images

from pipeline.config.generation import GenerationConfig
from pipeline.generation.attention import attention_maps
from pipeline.generation.beam import beam_search
from pipeline.generation.constraints import Constraints
from pipeline.model.decoders.recurrent import RecurrentDecoder
from shards.tokenizer import BOS, PAD

POSITIONS = 20


class Pointer:
    """A decoder that looks at the position of the number of the token that it read last."""

    def __init__(self, decoder: RecurrentDecoder) -> None:
        self.decoder = decoder
        self.to_words = decoder.to_words

    def start(self, encoded: Any) -> Any:
        return self.decoder.start(encoded), torch.zeros(len(encoded.pooled), dtype=torch.int64)

    def step(self, tokens: torch.Tensor, state: Any) -> Any:
        output, inner = self.decoder.step(tokens, state[0])
        return output, (inner, tokens)

    def reorder(self, state: Any, index: torch.Tensor) -> Any:
        return self.decoder.reorder(state[0], index), state[1][index]

    def attention(self, state: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(state[1], POSITIONS)


def test_each_token_has_the_map_of_the_step_that_chose_it() -> None:
    decoder, images = Pointer(random_decoder(1, POSITIONS)), random_images(1, 3)
    config = GenerationConfig("beam", beam=4, num_captions=2)
    tokens = beam_search(decoder, images, Constraints(6), config).tokens  # type: ignore[arg-type]
    maps = attention_maps(decoder, images, tokens)
    assert maps is not None
    assert maps.shape == (*tokens.shape, POSITIONS)
    read = torch.cat([torch.full((3, 2, 1), BOS), tokens[..., :-1]], dim=2)
    real = tokens != PAD
    assert torch.equal(maps.argmax(dim=3)[real], read[real])
    assert torch.equal(maps.sum(dim=3), real.float())


def test_a_decoder_without_attention_has_no_maps() -> None:
    assert attention_maps(random_decoder(1, 9), random_images(1, 2), torch.ones(2, 1, 3)) is None
