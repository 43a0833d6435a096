"""Decoders that look at the image between two words: what they have in common.

B images, K captions an image, N = B*K captions, P grid positions, D model width, L tokens,
H width of the states, V vocabulary
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn

from pipeline.config.model import DecoderConfig
from pipeline.model.protocols import Decoded, Encoded
from shards.tokenizer import PAD

# Of the forget gate at the beginning: Jozefowicz et al., An Empirical Exploration of Recurrent
# Network Architectures, ICML 2015, section 2.2.
FORGET_BIAS = 1.0

Tensors = tuple[torch.Tensor, ...]


class StepState(NamedTuple):
    """Where N captions of B images are."""

    memory: Tensors  # (B, ...) each: what depends on the image alone
    hidden: Tensors  # (N, ...) each
    attention: torch.Tensor | None  # (N, P) float: where the last step looked; None at the start


class StepwiseDecoder(nn.Module, ABC):
    """A recurrent decoder whose next input depends on its state, so that it goes word by word.

    A kind says what it remembers of an image (`remember`), how it begins (`begin`), and how it
    advances by a word (`advance`). `forward` and `step` are then the same arithmetic.
    """

    output: ClassVar[Literal["pooled", "grid"]] = "grid"
    attention_penalty = 0.0

    def __init__(
        self, config: DecoderConfig, dim: int, vocab_size: int, states_dim: int, gates_dim: int
    ) -> None:
        """
        Args:
            dim: D.
            vocab_size: V.
            states_dim: H.
            gates_dim: width of what a word adds to the gates of the first recurrent layer.
        """
        super().__init__()
        self.hidden_dim = config.hidden_dim
        self.embed = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        self.word_to_gates = nn.Linear(dim, gates_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.to_words = nn.Linear(states_dim, vocab_size)

    @abstractmethod
    def remember(self, encoded: Encoded) -> Tensors:
        """What depends on the images alone, (B, ...) each."""

    @abstractmethod
    def begin(self, encoded: Encoded) -> Tensors:
        """The hidden states before the first word, (B, ...) each."""

    @abstractmethod
    def advance(
        self, words: torch.Tensor, gates: torch.Tensor, hidden: Tensors, memory: Tensors
    ) -> tuple[torch.Tensor, Tensors, torch.Tensor]:
        """Advance K captions of each image by a word.

        Args:
            words: (B, K, D) float, the embedded words after dropout.
            gates: (B, K, G) float, what the words add to the gates.
            hidden: (B, K, ...) float each.
            memory: from `remember`.
        Returns:
            States (B, K, H) before the last dropout, the new hidden states, and the attention
            weights (B, K, P).
        """

    def zeros(self, encoded: Encoded, count: int) -> Tensors:
        """So many hidden states of zeros, of the hidden width each, for `begin`."""
        shape = (len(encoded.pooled), self.hidden_dim)
        return (encoded.pooled.new_zeros(shape, dtype=self.to_words.weight.dtype),) * count

    def forward(self, encoded: Encoded, tokens: torch.Tensor) -> Decoded:
        """The states of all positions by teacher forcing, after dropout.

        On a CPU, positions of padding are not computed, and are 0: images and the captions of each
        are put in order of length, so that each step works on the first images and their first
        captions. On a GPU, where reading the lengths would wait for the device, all are computed.

        Args:
            encoded: B images with a grid.
            tokens: (B, K, L) int64, BOS first, right-padded.
        Returns:
            (N, L, H) float states and (N, L, P) float attention weights.
        """
        places = _all_places(tokens) if tokens.is_cuda else _places_by_length(tokens)
        memory, hidden = self.remember(encoded), self.begin(encoded)
        if places.images is not None:
            memory, hidden = (
                tuple(part[places.images] for part in parts) for parts in (memory, hidden)
            )
        hidden = tuple(
            part[:, None].expand(-1, tokens.shape[1], *part.shape[1:]) for part in hidden
        )
        # One split has a cheap gradient. That of a slice for each position would be a tensor of the
        # size of all positions, each time.
        words = self.dropout(self.embed(tokens.flatten()[places.rows]))
        gates = self.word_to_gates(words)
        num_rows = [images * captions for images, captions in places.extents]
        by_position = zip(places.extents, words.split(num_rows), gates.split(num_rows), strict=True)
        states, weights = [], []
        for (images, captions), word, gate in by_position:
            if images < len(memory[0]):
                memory = tuple(part[:images] for part in memory)
            if (images, captions) != hidden[0].shape[:2]:
                hidden = tuple(part[:images, :captions] for part in hidden)
            state, hidden, attention = self.advance(
                word.view(images, captions, -1), gate.view(images, captions, -1), hidden, memory
            )
            states.append(state.flatten(0, 1))
            weights.append(attention.flatten(0, 1))
        return Decoded(
            places.spread(self.dropout(torch.cat(states))), places.spread(torch.cat(weights))
        )

    def start(self, encoded: Encoded) -> StepState:
        """The state before the first word: one caption an image."""
        return StepState(self.remember(encoded), self.begin(encoded), None)

    def step(self, tokens: torch.Tensor, state: StepState) -> tuple[torch.Tensor, StepState]:
        """Advance by one word: (N,) int64 and a state -> (N, H) float and the new state."""
        grouped = (len(state.memory[0]), -1)  # images, captions of each
        words = self.dropout(self.embed(tokens))
        hidden = tuple(part.view(*grouped, *part.shape[1:]) for part in state.hidden)
        states, hidden, attention = self.advance(
            words.view(*grouped, words.shape[1]),
            self.word_to_gates(words).view(*grouped, self.word_to_gates.out_features),
            hidden,
            state.memory,
        )
        flat = tuple(part.flatten(0, 1) for part in hidden)
        return self.dropout(states.flatten(0, 1)), StepState(
            state.memory, flat, attention.flatten(0, 1)
        )

    def reorder(self, state: Any, index: torch.Tensor) -> StepState:
        """The state of the rows `index`, (N',) int64. What belongs to the images stays."""
        attention = None if state.attention is None else state.attention[index]
        return StepState(state.memory, tuple(part[index] for part in state.hidden), attention)

    def attention(self, state: StepState) -> torch.Tensor | None:
        """Where the last step looked: (N, P) float."""
        return state.attention


class _Places(NamedTuple):
    """Which positions of the captions are computed, and in which order: position by position."""

    rows: torch.Tensor  # (M,) int64: the M positions that are computed among the N * L ones
    extents: list[tuple[int, int]]  # at each position, how many images and captions of each
    shape: tuple[int, int]  # N, L
    images: torch.Tensor | None  # (B,) int64: their order; None for that of the batch

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """(M, ...) -> (N, L, ...), 0 where nothing is computed."""
        num_captions, length = self.shape
        full = values.new_zeros(num_captions * length, *values.shape[1:])
        full = full.index_copy(0, self.rows, values)
        return full.view(num_captions, length, *values.shape[1:])


def _all_places(tokens: torch.Tensor) -> _Places:
    """All positions of (B, K, L) tokens."""
    num_images, num_captions, length = tokens.shape
    shape = (num_images * num_captions, length)
    rows = torch.arange(shape[0] * length, device=tokens.device).view(shape).t().flatten()
    return _Places(rows, [(num_images, num_captions)] * length, shape, None)


def _places_by_length(tokens: torch.Tensor) -> _Places:
    """The positions of (B, K, L) tokens that are not padding, and few others.

    Images are in order of their longest caption, and the captions of each in order of length,
    longest first. At each position the captions that are not over are then nearly a rectangle,
    which contains 1.2 times as many rows as are needed; all rows would be 2.1 times as many
    (batches of 48 images of Flickr8k with 5 captions each).
    """
    num_images, num_captions, length = tokens.shape
    lengths, captions = (tokens != PAD).sum(dim=2).sort(dim=1, descending=True, stable=True)
    images = lengths[:, 0].argsort(descending=True, stable=True)
    first = (images[:, None] * num_captions + captions[images]) * length  # (B, K), in that order
    longest_of_images = lengths[images, 0].tolist()
    longest_of_captions = lengths.amax(dim=0).tolist()
    extents = [
        (
            sum(n > position for n in longest_of_images),
            sum(n > position for n in longest_of_captions),
        )
        for position in range(max(longest_of_images))
    ]
    if not extents:  # empty slots alone: one position is computed, since DDP waits for gradients
        extents = [(1, 1)]
    rows = [
        (first[:left_images, :left_captions] + position).flatten()
        for position, (left_images, left_captions) in enumerate(extents)
    ]
    return _Places(torch.cat(rows), extents, (num_images * num_captions, length), images)


def lstm_cell(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The update of an LSTM from the sums that enter its gates.

    Args:
        gates: (..., 4H) float: input, forget, candidate and output gate. Under autocast they are
            rounded; the update itself is computed in the type of the cell.
        cell: (..., H) float.
    Returns:
        The hidden state and the cell, (..., H) float each.
    """
    input_gate, forget_gate, candidate, output_gate = gates.to(cell.dtype).chunk(4, dim=-1)
    cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
    return output_gate.sigmoid() * cell.tanh(), cell


def set_forget_bias(to_gates: nn.Linear, hidden_dim: int) -> None:
    """Open the forget gates, the second of the gates, at the beginning."""
    nn.init.constant_(to_gates.bias[hidden_dim : 2 * hidden_dim], FORGET_BIAS)
