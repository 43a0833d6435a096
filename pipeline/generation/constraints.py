"""Which tokens must not come next: one place for all methods of generation.

M captions, T tokens at most, V vocabulary, S sequences of L tokens
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import torch
from tokenizers import Tokenizer

from pipeline.config.generation import GenerationConfig
from shards.tokenizer import EOS, PAD, UNK, encode

# English words that leave a sentence unfinished: articles, prepositions that take an object,
# conjunctions, possessives, and the forms of "to be" and "to have". "on" can end a sentence ("with
# the lights on"), but at the end of a generated caption it nearly always begins a phrase that was
# cut off.
_UNFINISHED = """
    a an the and or but that which while as in at of with for from to on onto upon into by near
    over under behind between through before after beside against along towards during
    his her its their is are am was were be being been has have had
"""
BAD_ENDINGS = tuple(_UNFINISHED.split())


@dataclass(frozen=True)
class Constraints:
    """Rules that every caption keeps.

    Where the rules leave no token at all, the caption ends.

    Args:
        max_tokens: T.
        min_tokens: a caption has this many tokens before EOS.
        no_repeat_ngram: length of the token sequences that occur once at most; 0 for no limit.
        forbidden: token sequences that do not occur, as `sequences` gives them.
        bad_endings: token sequences that a caption does not end in, likewise.
        closing: (C,) int64: EOS and the tokens of full stops, exclamation and question marks, none
            of which follows a bad ending.
    """

    max_tokens: int
    min_tokens: int = 0
    no_repeat_ngram: int = 0
    forbidden: tuple[torch.Tensor, ...] = ()
    bad_endings: tuple[torch.Tensor, ...] = ()
    closing: torch.Tensor = field(default_factory=lambda: torch.tensor([EOS]))

    @classmethod
    def of(cls, config: GenerationConfig, tokenizer: Tokenizer, device: torch.device) -> Self:
        """The constraints that the settings ask for, for a vocabulary.

        A word that is not in the vocabulary is left out: it cannot be generated.
        """

        def known(words: Iterable[str]) -> list[list[int]]:
            encoded = (encode(tokenizer, word) for word in words)
            return [tokens for tokens in encoded if tokens and UNK not in tokens]

        forbidden = known(config.forbidden_words.split()) + [[UNK]] * config.block_unk
        return cls(
            config.max_tokens,
            config.min_tokens,
            config.no_repeat_ngram,
            sequences(forbidden, device),
            sequences(known(BAD_ENDINGS) if config.bad_endings else (), device),
            torch.tensor([EOS, *(t for mark in known(".!?") for t in mark[:1])], device=device),
        )

    def mask(self, scores: torch.Tensor, tokens: torch.Tensor, step: int) -> None:
        """Set the score of each token that must not come next to -inf, in place.

        Args:
            scores: (M, V) float; PAD's is -inf.
            tokens: (M, T) int64: the captions so far; positions from `step` on are not read.
            step: number of tokens that each caption has.
        """
        if not (self.min_tokens or self.no_repeat_ngram or self.forbidden or self.bad_endings):
            return
        ending = scores[:, EOS].clone()
        if step < self.min_tokens:
            scores[:, EOS] = -torch.inf
        for group in self.bad_endings:
            ends_badly = _follows(group, tokens[:, :step]).any(dim=1)
            closing = self.closing.expand(len(scores), -1)
            scores.scatter_(1, torch.where(ends_badly[:, None], closing, PAD), -torch.inf)
        # The last token of a caption that is cut at T is its ending as well.
        last = step == self.max_tokens - 1
        for group in (*self.forbidden, *(self.bad_endings if last else ())):
            _ban(scores, group[:, -1], _follows(group[:, :-1], tokens[:, :step]))
        if 0 < self.no_repeat_ngram <= step:
            ngrams = tokens[:, :step].unfold(1, self.no_repeat_ngram, 1)  # (M, S, L)
            begun = tokens[:, step + 1 - self.no_repeat_ngram : step]
            _ban(scores, ngrams[..., -1], (ngrams[..., :-1] == begun[:, None]).all(dim=2))
        nothing_left = (scores == -torch.inf).all(dim=1)
        scores[:, EOS] = torch.where(nothing_left, ending, scores[:, EOS])


def sequences(lists: Iterable[list[int]], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Token sequences as one (S, L) int64 tensor for each length L."""
    by_length: dict[int, list[list[int]]] = {}
    for tokens in lists:
        by_length.setdefault(len(tokens), []).append(tokens)
    return tuple(torch.tensor(group, device=device) for group in by_length.values())


def _follows(group: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Whether captions of `tokens`, (M, n), end in the sequences (S, L): (M, S) bool."""
    length = group.shape[1]
    if tokens.shape[1] < length:
        return torch.zeros(len(tokens), len(group), dtype=torch.bool, device=tokens.device)
    tail = tokens[:, tokens.shape[1] - length :]
    return (tail[:, None] == group).all(dim=2)


def _ban(scores: torch.Tensor, tokens: torch.Tensor, where: torch.Tensor) -> None:
    """Set the scores of `tokens`, (S,) or (M, S), to -inf where `where`, (M, S), is true."""
    scores.scatter_(1, torch.where(where, tokens, PAD), -torch.inf)  # PAD's is -inf already
