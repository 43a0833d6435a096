"""Token by token without a search: greedy decoding and sampling.

B images, N captions an image, M = B*N captions, T tokens at most, V vocabulary
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from pipeline.config.generation import GenerationConfig
from pipeline.data.sample_order import keyed_bytes
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

NOISE_VERSION = 1  # part of the key of the noise; raise it with any change of what is drawn
MANTISSA_BITS = 53


@torch.no_grad()
def greedy(decoder: Decoder, encoded: Any, constraints: Constraints) -> Captions:
    """The most likely token at each step, until every caption has ended or has T tokens.

    Args:
        encoded: B images.
    Returns:
        One caption an image. Its score is the sum of its log-probabilities.
    """
    return _token_by_token(decoder, encoded, constraints, 1, lambda scores, step: scores.argmax(1))


@torch.no_grad()
def sample(
    decoder: Decoder,
    encoded: Any,
    constraints: Constraints,
    config: GenerationConfig,
    noise: torch.Tensor,
) -> Captions:
    """Captions whose tokens are drawn by their probabilities.

    The scores under the constraints are divided by the temperature. Of these, the `top_k` most
    likely tokens are kept, and of them the most likely ones whose probabilities together reach
    `top_p`. The token is the one at which the sum of the probabilities of the tokens up to it, in
    the order of the vocabulary, exceeds the noise.

    Args:
        encoded: B images.
        config: `temperature`, `top_k` and `top_p` are used.
        noise: (B, N, T) float64, uniform from 0 to below 1, as `keyed_noise` gives it.
    Returns:
        N captions an image in the order of the noise. A score is the sum of the model's
        log-probabilities.
    Source: top_p: Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv:1904.09751.
    """
    rows = noise.flatten(0, 1)

    def choose(scores: torch.Tensor, step: int) -> torch.Tensor:
        kept = most_likely(scores / config.temperature, config.top_k, config.top_p)
        return draw(kept, rows[:, step])

    return _token_by_token(decoder, encoded, constraints, noise.shape[1], choose)


def _token_by_token(
    decoder: Decoder,
    encoded: Any,
    constraints: Constraints,
    num_captions: int,
    choose: Callable[[torch.Tensor, int], torch.Tensor],
) -> Captions:
    """N captions an image, each token chosen from (M, V) scores at a step, as (M,) int64."""
    state, last = start_rows(decoder, encoded, num_captions)
    shape, device = (len(last), constraints.max_tokens), last.device
    tokens = torch.full(shape, PAD, dtype=torch.int64, device=device)
    log_probs = torch.zeros(shape, device=device)
    ended = torch.zeros_like(last, dtype=torch.bool)
    for step in range(constraints.max_tokens):
        states, state = decoder.step(last, state)
        scores, norm = next_scores(decoder, states, constraints, tokens, step)
        last = choose(scores, step)
        chosen = scores.gather(1, last[:, None])[:, 0] - norm
        log_probs[:, step] = chosen.masked_fill(ended, 0.0)
        last = last.masked_fill(ended, PAD)
        tokens[:, step] = last
        ended |= last == EOS
        if time_to_check(step, device) and bool(ended.all()):
            break
    by_image = partial(torch.unflatten, dim=0, sizes=(-1, num_captions))
    return trimmed(by_image(tokens), by_image(log_probs), by_image(log_probs.sum(dim=1)))


def most_likely(scores: torch.Tensor, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """Scores in which only the most likely tokens are left, the others -inf.

    Args:
        scores: (M, V) float.
        top_k: how many tokens to keep; 0 for all.
        top_p: then keep the fewest whose probabilities together reach this number; 1 for all.
    """
    if top_k:
        values, index = scores.topk(min(top_k, scores.shape[1]), dim=1)
        scores = torch.full_like(scores, -torch.inf).scatter(1, index, values)
    if top_p < 1.0:
        values, index = scores.sort(dim=1, descending=True, stable=True)
        probs = values.double().softmax(dim=1)
        reached_before = probs.cumsum(dim=1) - probs >= top_p
        reached_before[:, 0] = False
        values = values.masked_fill(reached_before, -torch.inf)
        scores = torch.empty_like(scores).scatter(1, index, values)
    return scores


def draw(scores: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw a token for each row by inverting the distribution function.

    Args:
        scores: (M, V) float, unnormalised.
        noise: (M,) float64, uniform from 0 to below 1.
    Returns:
        (M,) int64.
    """
    sums = scores.double().softmax(dim=1).cumsum(dim=1)
    level = noise[:, None] * sums[:, -1:]
    token = torch.searchsorted(sums, level, right=True)[:, 0]  # the first whose sum exceeds it
    return token.clamp(max=scores.shape[1] - 1)


def keyed_noise(
    seed: int, ids: Sequence[object], num_captions: int, num_steps: int
) -> torch.Tensor:
    """Uniform numbers that depend on the seed, the image, the caption and the step alone.

    Args:
        ids: of B images.
    Returns:
        (B, N, T) float64 on the CPU, multiples of 2**-53 from 0 to below 1. Fewer captions or steps
        give the beginning of the same numbers.
    """
    size = 8 * num_steps
    data = b"".join(
        keyed_bytes(size, "capstream sampling", NOISE_VERSION, seed, image_id, number)
        for image_id in ids
        for number in range(num_captions)
    )
    bits = torch.frombuffer(bytearray(data), dtype=torch.int64) & ((1 << MANTISSA_BITS) - 1)
    return (bits.double() * 2.0**-MANTISSA_BITS).view(len(ids), num_captions, num_steps)
