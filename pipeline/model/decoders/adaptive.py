"""Adaptive attention: a sentinel lets the decoder look away from the image.

B images, K captions an image, P grid positions, D model width, H = D width of the states
"""

import torch
from torch import nn

from pipeline.config.model import DecoderConfig
from pipeline.model.decoders.attention import AdditiveAttention
from pipeline.model.decoders.stepwise import StepwiseDecoder, Tensors, lstm_cell, set_forget_bias
from pipeline.model.protocols import Encoded


class AdaptiveDecoder(StepwiseDecoder):
    """An LSTM that mixes the attended grid with a sentinel, which is computed from its memory.

    The vector of the whole image (eq. 16) is made of the mean of the grid after the encoder's
    head, where the paper takes the mean of the backbone's features.

    Source: Lu et al., Knowing When to Look: Adaptive Attention via A Visual Sentinel for Image
    Captioning, arXiv:1612.01887, eq. 6 to 13 and 16.
    """

    def __init__(self, config: DecoderConfig, dim: int, vocab_size: int) -> None:
        """
        Args:
            dim: D.
            vocab_size: V.
        """
        hidden_dim = config.hidden_dim
        super().__init__(config, dim, vocab_size, hidden_dim, gates_dim=5 * hidden_dim)
        assert dim == hidden_dim  # states, sentinel and grid are added up; checked before the start
        # Four gates of the LSTM and the gate of the sentinel (eq. 9) have the same inputs: the
        # word, the whole image and the hidden state.
        self.to_global = nn.Linear(dim, dim)  # eq. 16
        self.image_to_gates = nn.Linear(dim, 5 * hidden_dim, bias=False)
        self.hidden_to_gates = nn.Linear(hidden_dim, 5 * hidden_dim, bias=False)
        set_forget_bias(self.word_to_gates, hidden_dim)
        self.attend = AdditiveAttention(dim, hidden_dim, config.attention_dim)  # eq. 6 to 8
        self.sentinel_to_key = nn.Linear(hidden_dim, config.attention_dim)  # W_s of eq. 12

    def remember(self, encoded: Encoded) -> Tensors:
        """What the image adds to the gates (B, 1, 5H), the keys (B, P, A), the values (B, P, D)."""
        assert encoded.grid is not None
        image = self.to_global(encoded.pooled).relu()
        keys = self.attend.to_keys(encoded.grid)
        return self.image_to_gates(image)[:, None], keys, encoded.grid

    def begin(self, encoded: Encoded) -> Tensors:
        """Zeros: hidden state and cell, (B, H) each."""
        return self.zeros(encoded, 2)

    def advance(
        self, words: torch.Tensor, gates: torch.Tensor, hidden: Tensors, memory: Tensors
    ) -> tuple[torch.Tensor, Tensors, torch.Tensor]:
        """As `StepwiseDecoder.advance`; the attention weights do not count the sentinel's share."""
        state, cell = hidden
        image_gates, keys, values = memory
        sums = (gates + image_gates + self.hidden_to_gates(state)).to(cell.dtype)
        lstm_sums, sentinel_sum = sums.split([4 * cell.shape[2], cell.shape[2]], dim=2)
        state, cell = lstm_cell(lstm_sums, cell)
        sentinel = sentinel_sum.sigmoid() * cell.tanh()  # eq. 10
        scores = self.attend.scores(state, keys)
        query = self.attend.to_query(state)
        sentinel_key = (self.sentinel_to_key(sentinel) + query).tanh()
        sentinel_score = self.attend.to_score(sentinel_key).to(scores.dtype)
        shares = torch.cat([scores, sentinel_score], dim=2).softmax(dim=2)  # eq. 12
        weights, sentinel_share = shares[..., :-1], shares[..., -1:]
        # Eq. 11: the weights without the sentinel, times 1 - its share, are these weights.
        context = sentinel_share * sentinel + weights @ values.to(weights.dtype)
        return context + state, (state, cell), weights
