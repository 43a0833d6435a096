"""Beam search, in one group of beams or in several that avoid each other's words.

B images, G groups, W beams of a group, N best captions an image, T tokens at most, V vocabulary
"""

from typing import Any, NamedTuple, Self

import torch

from pipeline.config.generation import GenerationConfig
from pipeline.generation.captions import (
    Captions,
    next_scores,
    start_rows,
    time_to_check,
    trimmed,
)
from pipeline.generation.constraints import Constraints
from pipeline.model.protocols import Decoder
from shards.tokenizer import EOS, PAD


@torch.no_grad()
def beam_search(
    decoder: Decoder, encoded: Any, constraints: Constraints, config: GenerationConfig
) -> Captions:
    """The captions of highest score that a search with G groups of W beams finds.

    The score of a caption of n tokens is the sum of their log-probabilities divided by
    ((5 + n) / 6) ** length_penalty. In each step every beam is continued by every token that the
    constraints allow. Of these candidates, a caption that ends counts if it is among the W most
    likely ones of its group; the W most likely captions that do not end are the group's next beams.
    The search of a group ends when W captions have ended, or at T tokens, where the remaining beams
    count as they are. One beam gives the same caption as greedy decoding.

    With several groups, the groups choose in turn in each step. A token's log-probability is
    lowered by `diversity` for each beam of an earlier group that took it in this step; the lowered
    values add up along a beam. They decide only which beams a group keeps. The result has the best
    caption of each group, then the second best ones, up to N, in the order of their scores. Two
    groups can find the same caption.

    Args:
        encoded: B images.
        config: `beam` is G * W. `num_captions` is N. `length_penalty`, `groups` and `diversity`.
    Source: the score: Wu et al., Google's Neural Machine Translation System, arXiv:1609.08144,
        eq. 14. The groups: Vijayakumar et al., Diverse Beam Search, arXiv:1610.02424, algorithm 1
        with Hamming diversity.
    """
    num_groups = _num_groups(config)
    state, last = start_rows(decoder, encoded, config.beam)
    num_images, device = len(last) // config.beam, last.device
    shape = (num_images, config.beam // num_groups, constraints.max_tokens)
    groups = [_Group.start(shape, device) for _ in range(num_groups)]
    by_group = (num_images, num_groups, shape[1])
    first_rows = torch.arange(num_images * num_groups, device=device).view(*by_group[:2]) * shape[1]
    for step in range(constraints.max_tokens):
        states, state = decoder.step(last, state)
        tokens = torch.stack([group.beams.tokens for group in groups], dim=1).flatten(0, 2)
        scores, norm = next_scores(decoder, states, constraints, tokens, step)
        scores, norm = scores.view(*by_group, -1), norm.view(by_group)
        taken = _Taken(num_images, config.diversity, device)
        parents = [
            group.advance(scores[:, number], norm[:, number], taken, step, config.length_penalty)
            for number, group in enumerate(groups)
        ]
        if time_to_check(step, device) and all(bool(group.done.all()) for group in groups):
            break
        last = torch.stack([group.beams.tokens[..., step] for group in groups], dim=1).flatten()
        rows = first_rows[..., None] + torch.stack(parents, dim=1)
        state = decoder.reorder(state, rows.flatten())
    else:
        for group in groups:
            group.add_ended(group.beams, ~group.done, constraints.max_tokens, config.length_penalty)
    return _best([group.ended for group in groups], config.num_captions)


def _num_groups(config: GenerationConfig) -> int:
    if config.method != "diverse_beam":
        return 1
    return config.beam if config.groups is None else config.groups


class _Beams(NamedTuple):
    """Captions side by side: those that grow, or the best of those that have ended."""

    scores: torch.Tensor  # (B, W) float32; -inf in an empty place
    tokens: torch.Tensor  # (B, W, T) int64
    log_probs: torch.Tensor  # (B, W, T) float32: the model's

    @classmethod
    def empty(cls, shape: tuple[int, int, int], device: torch.device) -> Self:
        """No captions, in W places."""
        return cls(
            torch.full(shape[:2], -torch.inf, device=device),
            torch.full(shape, PAD, dtype=torch.int64, device=device),
            torch.zeros(shape, device=device),
        )

    def take(self, scores: torch.Tensor, index: torch.Tensor) -> "_Beams":
        """The beams of `index`, (B, W') int64, with new scores."""
        rows = index[..., None].expand(-1, -1, self.tokens.shape[2])
        return _Beams(scores, self.tokens.gather(1, rows), self.log_probs.gather(1, rows))


class _Taken:
    """The tokens that the earlier groups took in one step.

    Args:
        num_images: B.
        diversity: by how much each use lowers a token.
    """

    def __init__(self, num_images: int, diversity: float, device: torch.device) -> None:
        self._tokens = torch.empty(num_images, 0, dtype=torch.int64, device=device)
        self._lowered_by = torch.empty(num_images, 0, device=device)
        self._diversity = diversity

    def lower(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores, (B, W, V), lowered for each use of a token."""
        if not self._tokens.shape[1]:
            return scores
        shape = (-1, scores.shape[1], -1)
        tokens, by = self._tokens[:, None].expand(shape), self._lowered_by[:, None].expand(shape)
        return scores.scatter_add(2, tokens, -by)

    def add(self, tokens: torch.Tensor, searching: torch.Tensor) -> None:
        """Count (B, W) tokens for the images whose search goes on, (B, 1) bool."""
        by = (self._diversity * searching).expand(tokens.shape)
        self._tokens = torch.cat([self._tokens, tokens], dim=1)
        self._lowered_by = torch.cat([self._lowered_by, by], dim=1)


class _Group:
    """The search of one group: the beams that grow, and the W best captions that have ended."""

    def __init__(self, beams: _Beams, ended: _Beams) -> None:
        self.beams, self.ended = beams, ended

    @classmethod
    def start(cls, shape: tuple[int, int, int], device: torch.device) -> Self:
        """One beam without a token, and no captions."""
        beams = _Beams.empty(shape, device)
        beams.scores[:, 0] = 0.0  # all captions begin with the same one
        return cls(beams, _Beams.empty(shape, device))

    @property
    def done(self) -> torch.Tensor:
        """(B, 1) bool: W captions have ended."""
        return self.ended.scores[:, -1:] > -torch.inf

    def advance(
        self,
        scores: torch.Tensor,
        norm: torch.Tensor,
        taken: _Taken,
        step: int,
        length_penalty: float,
    ) -> torch.Tensor:
        """Choose the next beams, and keep the captions that end.

        Args:
            scores: (B, W, V) float32.
            norm: (B, W) float32: a score less the norm is a log-probability.
            taken: the tokens of the groups before this one; this group's are added.
            step: number of tokens that the beams have.
        Returns:
            (B, W) int64: which beam each new one continues.
        """
        width = scores.shape[1]
        candidates, parents = _continue(self.beams, scores, taken.lower(scores), norm, step)
        ending = candidates.tokens[..., step] == EOS
        among_best = torch.arange(ending.shape[1], device=ending.device) < width
        self.add_ended(candidates, ending & among_best & ~self.done, step + 1, length_penalty)
        growing = candidates.scores.masked_fill(ending, -torch.inf)
        values, chosen = growing.topk(width, dim=1)
        self.beams = candidates.take(values, chosen)
        taken.add(self.beams.tokens[..., step], ~self.done)
        return parents.gather(1, chosen)

    def add_ended(
        self, candidates: _Beams, count: torch.Tensor, num_tokens: int, length_penalty: float
    ) -> None:
        """Keep the W best of the captions that have ended and of those candidates that count.

        Args:
            count: bool, of the shape of the candidates' scores or to be expanded to it.
            num_tokens: of the candidates.
        """
        scores = candidates.log_probs.sum(dim=2) / ((5.0 + num_tokens) / 6.0) ** length_penalty
        scores = scores.masked_fill(~count | (candidates.scores == -torch.inf), -torch.inf)
        both = _Beams(*(torch.cat(parts, 1) for parts in zip(self.ended, candidates, strict=True)))
        width = self.ended.scores.shape[1]
        values, index = torch.cat([self.ended.scores, scores], dim=1).topk(width, dim=1)
        self.ended = both.take(values, index)


def _continue(
    beams: _Beams, scores: torch.Tensor, lowered: torch.Tensor, norm: torch.Tensor, step: int
) -> tuple[_Beams, torch.Tensor]:
    """The most likely captions of one more token.

    There are 2W of them, or all: each beam can end in one way only, so at least W of these grow.

    Args:
        scores: (B, W, V) float32.
        lowered: the scores that decide, likewise.
        norm: (B, W) float32.
        step: number of tokens that the beams have.
    Returns:
        The candidates, and the beams that they continue, (B, 2W) int64.
    """
    _, width, vocab_size = scores.shape
    num_each = min(2 * width, vocab_size)
    values, tokens = lowered.topk(num_each, dim=2)
    sums = (beams.scores[..., None] + (values - norm[..., None])).flatten(1)
    values, index = sums.topk(min(2 * width, sums.shape[1]), dim=1)
    parents, tokens = index // num_each, tokens.flatten(1).gather(1, index)
    candidates = beams.take(values, parents)
    candidates.tokens[..., step] = tokens
    chosen = scores.flatten(1).gather(1, parents * vocab_size + tokens)
    candidates.log_probs[..., step] = chosen - norm.gather(1, parents)
    return candidates, parents


def _best(groups: list[_Beams], num_best: int) -> Captions:
    """The N best captions of all groups, each group's best before any group's second best."""
    scores, tokens, log_probs = (
        torch.stack(parts, dim=2).flatten(1, 2)[:, :num_best] for parts in zip(*groups, strict=True)
    )
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    best = _Beams(scores, tokens, log_probs).take(scores, order)
    missing = (scores == -torch.inf)[..., None]
    return trimmed(
        best.tokens.masked_fill(missing, PAD), best.log_probs.masked_fill(missing, 0.0), scores
    )
