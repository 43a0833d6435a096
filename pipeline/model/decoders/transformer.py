"""A transformer that reads the words so far and the grid of the image.

B images, K captions an image, N = B*K captions, P grid positions, D model width, L tokens,
H width of the states, A heads, M positions that are computed, V vocabulary
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from pipeline.config.model import DecoderConfig
from pipeline.model.protocols import Decoded, Encoded
from shards.tokenizer import PAD

WIDENING = 4  # the feed-forward layer is this many times as wide as the states


class TransformerState(NamedTuple):
    """Where N captions of B images are."""

    image_keys: tuple[torch.Tensor, ...]  # (B, P, 2H) of each layer: keys, then values
    word_keys: tuple[torch.Tensor, ...]  # (N, L so far, 2H) of each layer
    attention: torch.Tensor | None  # (N, P) float: where the last step looked; None at the start


class TransformerDecoder(nn.Module):
    """Layers of self-attention, attention to the grid and a feed-forward network.

    Each of them has LayerNorm before it (pre-norm). Keys and values of the image are computed once
    an image, those of the words once a word.
    Source: Vaswani et al., Attention Is All You Need, arXiv:1706.03762, section 3; Xiong et al., On
    Layer Normalization in the Transformer Architecture, arXiv:2002.04745, for pre-norm.
    """

    output: ClassVar[Literal["pooled", "grid"]] = "grid"
    attention_penalty = 0.0

    def __init__(self, config: DecoderConfig, dim: int, vocab_size: int) -> None:
        """
        Args:
            dim: D.
            vocab_size: V.
        """
        super().__init__()
        width = config.hidden_dim
        self.embed = nn.Embedding(vocab_size, width, padding_idx=PAD)
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        layers = [_Layer(config, dim) for _ in range(config.layers)]
        self.layers: Sequence[_Layer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(width)
        self.to_words = nn.Linear(width, vocab_size)

    def forward(self, encoded: Encoded, tokens: torch.Tensor) -> Decoded:
        """The states of all positions by teacher forcing.

        On a CPU, linear layers work on the positions that are not padding, about half of them. On a
        GPU, where finding them would wait for the device, they work on all.

        Args:
            encoded: B images with a grid.
            tokens: (B, K, L) int64, BOS first, right-padded.
        Returns:
            (N, L, H) float, 0 at padding on a CPU.
        """
        assert encoded.grid is not None
        places = _Places(tokens.flatten(0, 1))
        states = places.pack(self._embed(tokens.flatten(0, 1), first=0))
        for layer in self.layers:
            states = layer(states, layer.image_keys(encoded.grid), places)
        return Decoded(places.unpack(self.norm(states)), None)

    def start(self, encoded: Encoded) -> TransformerState:
        """The state before the first word: one caption an image."""
        assert encoded.grid is not None
        keys = tuple(layer.image_keys(encoded.grid) for layer in self.layers)
        empty = keys[0].new_zeros(len(encoded.grid), 0, keys[0].shape[2])
        return TransformerState(keys, (empty,) * len(self.layers), None)

    def step(
        self, tokens: torch.Tensor, state: TransformerState
    ) -> tuple[torch.Tensor, TransformerState]:
        """Advance by one word: (N,) int64 and a state -> (N, H) float and the new state."""
        states = self._embed(tokens[:, None], first=state.word_keys[0].shape[1])[:, 0]
        word_keys, weights = [], None
        for layer, image, words in zip(self.layers, state.image_keys, state.word_keys, strict=True):
            states, words, weights = layer.step(states, image, words)
            word_keys.append(words)
        return self.norm(states), TransformerState(state.image_keys, tuple(word_keys), weights)

    def reorder(self, state: TransformerState, index: torch.Tensor) -> TransformerState:
        """The state of the rows `index`, (N',) int64. What belongs to the images stays."""
        attention = None if state.attention is None else state.attention[index]
        word_keys = tuple(keys[index] for keys in state.word_keys)
        return TransformerState(state.image_keys, word_keys, attention)

    def attention(self, state: TransformerState) -> torch.Tensor | None:
        """Where the last step looked: (N, P) float, the mean over the heads of the last layer."""
        return state.attention

    def _embed(self, tokens: torch.Tensor, first: int) -> torch.Tensor:
        """Words and their positions: (N, L) int64 -> (N, L, H) float."""
        width = self.embed.embedding_dim
        words = self.embed(tokens) * math.sqrt(width)
        places = sinusoids(first, tokens.shape[1], width, tokens.device).to(words)
        embedded: torch.Tensor = self.dropout(words + places)
        return embedded


class _Layer(nn.Module):
    def __init__(self, config: DecoderConfig, dim: int) -> None:
        super().__init__()
        width, self.heads = config.hidden_dim, config.heads
        self.self_norm, self.image_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.self_in, self.self_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.image_in, self.image_out = nn.Linear(width, width), nn.Linear(width, width)
        self.image_keys = nn.Linear(dim, 2 * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, WIDENING * width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(WIDENING * width, width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: torch.Tensor, image: torch.Tensor, places: "_Places") -> torch.Tensor:
        """(M, H) states of all positions and (B, P, 2H) image keys -> (M, H)."""
        both = places.unpack(self.self_in(self.self_norm(states)))  # (N, L, 3H)
        queries, keys, values = (self._heads(part) for part in both.chunk(3, dim=2))
        seen = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        states = states + self.dropout(self.self_out(places.pack(_join(seen))))
        queries = places.unpack(self.image_in(self.image_norm(states)))  # (N, L, H)
        grouped = queries.view(len(image), -1, queries.shape[2])  # (B, K*L, H)
        looked, _ = self._look(grouped, image)
        looked = places.pack(looked.view(queries.shape))
        return self._feed_forward(states + self.dropout(self.image_out(looked)))

    def step(
        self, states: torch.Tensor, image: torch.Tensor, words: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, H), (B, P, 2H) and (N, L, 2H) -> (N, H), (N, L + 1, 2H) and weights (N, P)."""
        query, key = self.self_in(self.self_norm(states)).split(
            [states.shape[1], 2 * states.shape[1]], dim=1
        )
        words = torch.cat([words, key[:, None]], dim=1)
        keys, values = (self._heads(part) for part in words.chunk(2, dim=2))
        seen = scaled_dot_product_attention(self._heads(query[:, None]), keys, values)
        states = states + self.self_out(_join(seen)[:, 0])
        queries = self.image_in(self.image_norm(states))
        looked, weights = self._look(queries.view(len(image), -1, queries.shape[1]), image)
        states = states + self.image_out(looked.flatten(0, 1))
        return self._feed_forward(states), words, weights.mean(dim=1).flatten(0, 1)

    def _look(
        self, queries: torch.Tensor, image: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, Q, H) queries of an image's captions -> (B, Q, H) and weights (B, A, Q, P)."""
        keys, values = (self._heads(part) for part in image.chunk(2, dim=2))
        scores = self._heads(queries) @ keys.transpose(2, 3) / math.sqrt(keys.shape[3])
        weights = scores.softmax(dim=3).to(values.dtype)  # autocast computes it in float32
        return _join(weights @ values), weights

    def _feed_forward(self, states: torch.Tensor) -> torch.Tensor:
        fed: torch.Tensor = states + self.dropout(self.mlp(self.mlp_norm(states)))
        return fed

    def _heads(self, values: torch.Tensor) -> torch.Tensor:
        """(N, L, H) -> (N, A, L, H / A)."""
        heads: torch.Tensor = values.unflatten(2, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        return heads


class _Places:
    """Which positions of N captions are computed: on a CPU all but padding, on a GPU all."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.shape = tokens.shape
        self.index = None
        if not tokens.is_cuda:
            self.index = (tokens != PAD).flatten().nonzero()[:, 0]

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """(N, L, ...) -> (M, ...)."""
        flat = values.flatten(0, 1)
        return flat if self.index is None else flat.index_select(0, self.index)

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """(M, ...) -> (N, L, ...), 0 where nothing is computed."""
        if self.index is not None:
            full = values.new_zeros(self.shape.numel(), *values.shape[1:])
            values = full.index_copy(0, self.index, values)
        rows: torch.Tensor = values.unflatten(0, self.shape)  # type: ignore[no-untyped-call]
        return rows


def _join(values: torch.Tensor) -> torch.Tensor:
    """(N, A, L, H / A) -> (N, L, H)."""
    return values.transpose(1, 2).flatten(2)


def sinusoids(first: int, count: int, width: int, device: torch.device) -> torch.Tensor:
    """Encodings of positions: (count, width) float64.

    They are computed on the device: a copy from the host would wait for it.

    Source: Vaswani et al., arXiv:1706.03762, section 3.5; sines first, then cosines.
    """
    half = torch.arange(width // 2, dtype=torch.float64, device=device)
    rates = torch.exp(-math.log(1e4) * half / (width // 2))
    positions = torch.arange(first, first + count, dtype=torch.float64, device=device)
    angles = positions[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
