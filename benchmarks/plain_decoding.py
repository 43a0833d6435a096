"""Attention decoders as tutorials write them, with the weights of ours, for benchmarks/decode.py.

B images, K captions an image, N = B*K captions, P grid positions, F features, D model width,
A width of the attention, L tokens, W beams
"""

import copy
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pipeline.model.decoders.attention import AdditiveAttention
from shards.tokenizer import BOS, EOS, PAD


@torch.no_grad()
def beam_of_one_image(
    decoder: nn.Module, grid: torch.Tensor, width: int, max_tokens: int
) -> tuple[list[int], float]:
    """The best caption of one image: the beams are the batch, and each has its copy of the grid.

    The keys of the attention are computed in every step for every beam. The rules of the search are
    those of `beam_search`, so that the captions are the same.

    Args:
        decoder: a `SoftAttentionDecoder`.
        grid: (1, P, D) float.
        width: W.
    Returns:
        The tokens and the sum of their log-probabilities.
    """
    grid = grid.expand(width, -1, -1)
    pooled = grid.mean(dim=1)
    hidden, cell = decoder.to_hidden(pooled).tanh(), decoder.to_cell(pooled).tanh()
    last = torch.full((width,), BOS, device=grid.device)
    totals = torch.full((width, 1), -torch.inf, device=grid.device)
    totals[0] = 0.0  # all beams begin with the same token
    captions: list[list[int]] = [[]] * width
    ended: list[tuple[float, list[int]]] = []
    for _ in range(max_tokens):
        states, hidden, cell = _step(decoder, grid, last, hidden, cell)
        scores = decoder.to_words(states)
        scores[:, [PAD, BOS]] = -torch.inf
        candidates = totals + scores.log_softmax(dim=1)
        values, chosen = candidates.flatten().topk(2 * width)
        growing = []
        for rank, (total, index) in enumerate(zip(values.tolist(), chosen.tolist(), strict=True)):
            parent, token = divmod(index, scores.shape[1])
            caption = [*captions[parent], token]
            if token != EOS:
                growing.append((total, parent, caption))
            elif rank < width:
                ended.append((total, caption))
        growing = growing[:width]
        captions = [caption for _, _, caption in growing]
        if len(ended) >= width:
            break
        totals = torch.tensor([[total] for total, _, _ in growing], device=grid.device)
        last = torch.tensor([caption[-1] for caption in captions], device=grid.device)
        rows = torch.tensor([parent for _, parent, _ in growing], device=grid.device)
        hidden, cell = hidden[rows], cell[rows]
    else:
        ended += [(total, caption) for total, _, caption in growing]
    total, best = max(ended)
    return best, total


def _step(
    decoder: nn.Module,
    grid: torch.Tensor,
    last: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One word for each row: Xu et al., Show, Attend and Tell, arXiv:1502.03044, eq. 1 to 7."""
    attend = decoder.attend
    sums = attend.to_keys(grid) + attend.to_query(hidden)[:, None]  # (W, P, A)
    weights = attend.to_score(sums.tanh()).softmax(dim=1)  # (W, P, 1)
    context = (weights * grid).sum(dim=1) * decoder.to_gate(hidden).sigmoid()
    words = decoder.embed(last)
    entering = decoder.input_to_gates(torch.cat([context, hidden], dim=1))
    enter, keep, candidate, leave = (decoder.word_to_gates(words) + entering).chunk(4, dim=1)
    cell = keep.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
    hidden = leave.sigmoid() * cell.tanh()
    states = words + decoder.hidden_to_state(hidden) + decoder.context_to_state(context)
    return states, hidden, cell


def with_plain_attention(model: nn.Module) -> nn.Module:
    """A copy of a model whose additive attention leaves its gradients to torch."""
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if isinstance(layer, AdditiveAttention):
            layer.scores = partial(_attention_scores, layer)  # type: ignore[method-assign]
    return plain


def _attention_scores(attend: nn.Module, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(N, K, H) and (N, P, A) -> (N, K, P), as `AdditiveAttention.scores`."""
    sums = keys[:, None] + attend.to_query(queries)[:, :, None]
    scores: torch.Tensor = attend.to_score(sums.tanh())[..., 0]
    return scores


def loss_of_rows(
    head: nn.Module, decoder: nn.Module, features: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Summed cross-entropy by teacher forcing, where each caption is an image of its own.

    Each row has its copy of the features, its own grid and its own keys. All rows go on, word by
    word, until the longest caption is over, and are projected to the vocabulary in each step.

    Args:
        features: (B, P, F) float.
        tokens: (B, K, L) int64, BOS first, EOS last, right-padded.
    """
    rows = tokens.flatten(0, 1)
    state = decoder.start(head(_copies(features, tokens)))
    loss = features.new_zeros(())
    for position in range(rows.shape[1] - 1):
        states, state = decoder.step(rows[:, position], state)
        loss = loss + _summed(decoder.to_words(states), rows[:, position + 1])
    return loss


def loss_of_rows_at_once(
    head: nn.Module, decoder: nn.Module, features: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """The same for a transformer, which computes all words at once, those of padding too."""
    encoded, rows = head(_copies(features, tokens)), tokens.flatten(0, 1)
    filled = rows.masked_fill(rows == PAD, EOS)  # ours leaves out PAD
    states = decoder(encoded, filled[:, None, :-1]).states
    return _summed(decoder.to_words(states).flatten(0, 1), rows[:, 1:].flatten())


def _copies(features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return features.repeat_interleave(tokens.shape[1], dim=0)


def _summed(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(scores, targets, ignore_index=PAD, reduction="sum")
