"""Greedy decoding over any decoder."""

import torch
from torch.nn import functional

from pipeline.generation.greedy import greedy
from pipeline.model.protocols import Encoded
from shards.tokenizer import BOS, EOS, PAD

VOCAB = 11


class Parrot:
    """A decoder that says fixed words, then EOS for ever; its states are the scores."""

    def __init__(self, captions: list[list[int]]) -> None:
        self.captions = captions
        self.steps = 0

    def start(self, encoded: Encoded) -> int:
        return 0

    def to_words(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def step(self, tokens: torch.Tensor, state: int) -> tuple[torch.Tensor, int]:
        expected = [BOS if state == 0 else (c + [EOS] * 99)[state - 1] for c in self.captions]
        assert [t for t in tokens.tolist() if t != PAD] == [
            e for t, e in zip(tokens.tolist(), expected, strict=True) if t != PAD
        ]
        self.steps += 1
        said = torch.tensor([(c + [EOS] * 99)[state] for c in self.captions])
        scores = functional.one_hot(said, VOCAB).float()
        scores[:, PAD] = scores[:, BOS] = 9.0  # must never be said
        return scores, state + 1


def test_it_stops_when_all_captions_have_ended() -> None:
    parrot = Parrot([[5, 6, 7], [8]])
    tokens = greedy(parrot, Encoded(torch.zeros(2, 8)), max_tokens=20)
    assert tokens.tolist() == [[5, 6, 7, EOS], [8, EOS, PAD, PAD]]
    assert parrot.steps == 4


def test_it_stops_at_the_longest_caption_allowed() -> None:
    tokens = greedy(Parrot([[5] * 50]), Encoded(torch.zeros(1, 8)), max_tokens=3)
    assert tokens.tolist() == [[5, 5, 5]]
