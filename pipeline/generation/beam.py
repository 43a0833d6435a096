"""Beam search.

B images, W beams an image, N best captions an image, T tokens at most, V vocabulary
"""

from typing import NamedTuple

import torch

from pipeline.model.protocols import Decoder, Encoded
from shards.tokenizer import BOS, EOS, PAD


class Captions(NamedTuple):
    """The N best captions of each image, best first."""

    tokens: torch.Tensor  # (B, N, up to T) int64, without BOS; EOS where a caption ended, then PAD
    log_probs: torch.Tensor  # (B, N, up to T) float32: of each token; 0 at PAD
    scores: torch.Tensor  # (B, N) float32: -inf where an image has fewer than N captions


class _Beams(NamedTuple):
    """Captions side by side: those that grow, or the best of those that have ended."""

    scores: torch.Tensor  # (B, W) float32; -inf in an empty place
    tokens: torch.Tensor  # (B, W, T) int64
    log_probs: torch.Tensor  # (B, W, T) float32

    def take(self, scores: torch.Tensor, index: torch.Tensor) -> "_Beams":
        """The beams of `index`, (B, W') int64, with new scores."""
        rows = index[..., None].expand(-1, -1, self.tokens.shape[2])
        return _Beams(scores, self.tokens.gather(1, rows), self.log_probs.gather(1, rows))


@torch.no_grad()
def beam_search(
    decoder: Decoder,
    encoded: Encoded,
    max_tokens: int,
    width: int,
    num_best: int = 1,
    length_penalty: float = 0.0,
) -> Captions:
    """The captions of highest score that a search with W beams finds.

    The score of a caption of n tokens is the sum of their log-probabilities divided by
    ((5 + n) / 6) ** length_penalty. In each step every beam is continued by every token. Of these
    candidates, a caption that ends counts if it is among the W most likely ones; the W most likely
    captions that do not end are the next beams. The search for an image ends when W captions have
    ended, or at T tokens, where the remaining beams count as they are. One beam gives the same
    captions as greedy decoding.

    Args:
        encoded: B images.
        max_tokens: T.
        width: W.
        num_best: N, at most W.
        length_penalty: 0 compares sums of log-probabilities, and larger values favour longer
            captions.
    Source: Wu et al., Google's Neural Machine Translation System, arXiv:1609.08144, eq. 14.
    """
    assert 1 <= num_best <= width
    num_images, device = len(encoded.pooled), encoded.pooled.device
    state = decoder.reorder(
        decoder.start(encoded), torch.arange(num_images, device=device).repeat_interleave(width)
    )
    beams = _empty_beams(num_images, width, max_tokens, device)
    beams.scores[:, 0] = 0.0  # all captions begin with the same one
    ended = _empty_beams(num_images, width, max_tokens, device)
    last = torch.full((num_images, width), BOS, dtype=torch.int64, device=device)
    for step in range(max_tokens):
        states, state = decoder.step(last.flatten(), state)
        scores = decoder.to_words(states).float()
        scores[:, [PAD, BOS]] = -torch.inf  # neither is part of a caption
        log_probs = scores.log_softmax(dim=1).view(num_images, width, -1)
        candidates, parents = _continue(beams, log_probs, step)
        done = ended.scores[:, -1:] > -torch.inf  # W captions have ended
        ending = candidates.tokens[..., step] == EOS
        among_best = torch.arange(candidates.scores.shape[1], device=device) < width
        count = ending & among_best & ~done
        ended = _best_of(ended, candidates, count, step + 1, length_penalty)
        if bool((ended.scores[:, -1] > -torch.inf).all()):
            break
        growing = candidates.scores.masked_fill(ending, -torch.inf)
        values, chosen = growing.topk(width, dim=1)
        beams = candidates.take(values, chosen)
        parents = parents.gather(1, chosen)
        last = beams.tokens[..., step]
        first_rows = torch.arange(num_images, device=device)[:, None] * width
        state = decoder.reorder(state, (first_rows + parents).flatten())
    else:
        done = ended.scores[:, -1:] > -torch.inf
        ended = _best_of(ended, beams, ~done.expand_as(beams.scores), max_tokens, length_penalty)
    scores = ended.scores[:, :num_best]
    missing = (scores == -torch.inf)[..., None]
    tokens = ended.tokens[:, :num_best].masked_fill(missing, PAD)
    log_probs = ended.log_probs[:, :num_best].masked_fill(missing, 0.0)
    length = int((tokens != PAD).sum(dim=2).max())
    return Captions(tokens[..., :length], log_probs[..., :length], scores)


def _empty_beams(num_images: int, width: int, max_tokens: int, device: torch.device) -> _Beams:
    shape = (num_images, width, max_tokens)
    return _Beams(
        torch.full(shape[:2], -torch.inf, device=device),
        torch.full(shape, PAD, dtype=torch.int64, device=device),
        torch.zeros(shape, device=device),
    )


def _continue(beams: _Beams, log_probs: torch.Tensor, step: int) -> tuple[_Beams, torch.Tensor]:
    """The most likely captions of one more token.

    There are 2W of them, or all: each beam can end in one way only, so at least W of these grow.

    Args:
        log_probs: (B, W, V) float32.
        step: number of tokens that the beams have.
    Returns:
        The candidates, whose scores are sums of log-probabilities, and their beams, (B, 2W) int64.
    """
    _, width, vocab_size = log_probs.shape
    sums = (beams.scores[..., None] + log_probs).flatten(1)
    values, index = sums.topk(min(2 * width, sums.shape[1]), dim=1)
    parents, tokens = index // vocab_size, index % vocab_size
    candidates = beams.take(values, parents)
    candidates.tokens[..., step] = tokens
    candidates.log_probs[..., step] = log_probs.flatten(1).gather(1, index)
    return candidates, parents


def _best_of(
    ended: _Beams, candidates: _Beams, count: torch.Tensor, num_tokens: int, length_penalty: float
) -> _Beams:
    """The W best of the captions that have ended and of those candidates that count.

    Args:
        count: bool, of the shape of the candidates' scores.
        num_tokens: of the candidates.
    """
    scores = candidates.scores / ((5.0 + num_tokens) / 6.0) ** length_penalty
    scores = scores.masked_fill(~count, -torch.inf)
    both = _Beams(*(torch.cat(parts, dim=1) for parts in zip(ended, candidates, strict=True)))
    width = ended.scores.shape[1]
    values, index = torch.cat([ended.scores, scores], dim=1).topk(width, dim=1)
    return both.take(values, index)
