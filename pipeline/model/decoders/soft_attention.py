"""Show, Attend and Tell with soft attention.

B images, K captions an image, P grid positions, D model width, H width of the recurrent layer
"""

import torch
from torch import nn

from pipeline.config.model import DecoderConfig
from pipeline.model.decoders.attention import AdditiveAttention
from pipeline.model.decoders.stepwise import StepwiseDecoder, Tensors, lstm_cell, set_forget_bias
from pipeline.model.protocols import Encoded


class SoftAttentionDecoder(StepwiseDecoder):
    """An LSTM whose input is the word and what it looks at.

    The attention weights can be kept near a sum of 1 over the words of a caption at each position:
    see `attention_penalty`.
    Source: Xu et al., Show, Attend and Tell, arXiv:1502.03044, eq. 1 to 7, 13 and 14.
    """

    def __init__(self, config: DecoderConfig, dim: int, vocab_size: int) -> None:
        """
        Args:
            dim: D.
            vocab_size: V.
        """
        hidden_dim = config.hidden_dim
        super().__init__(config, dim, vocab_size, states_dim=dim, gates_dim=4 * hidden_dim)
        self.attention_penalty = config.attention_penalty
        self.to_hidden = nn.Linear(dim, hidden_dim)  # f_init of section 3.1.2
        self.to_cell = nn.Linear(dim, hidden_dim)
        self.attend = AdditiveAttention(dim, hidden_dim, config.attention_dim)  # eq. 4 to 6
        self.to_gate = nn.Linear(hidden_dim, 1)  # beta of section 4.2.1
        self.input_to_gates = nn.Linear(dim + hidden_dim, 4 * hidden_dim, bias=False)
        set_forget_bias(self.word_to_gates, hidden_dim)
        self.hidden_to_state = nn.Linear(hidden_dim, dim)  # L_h of eq. 7
        self.context_to_state = nn.Linear(dim, dim, bias=False)  # L_z

    def remember(self, encoded: Encoded) -> Tensors:
        """The keys (B, P, A) and the values (B, P, D)."""
        assert encoded.grid is not None
        return self.attend.to_keys(encoded.grid), encoded.grid

    def begin(self, encoded: Encoded) -> Tensors:
        """Hidden state and cell, (B, H) each, from the mean of the grid."""
        dtype = self.to_words.weight.dtype
        return (
            self.to_hidden(encoded.pooled).tanh().to(dtype),
            self.to_cell(encoded.pooled).tanh().to(dtype),
        )

    def advance(
        self, words: torch.Tensor, gates: torch.Tensor, hidden: Tensors, memory: Tensors
    ) -> tuple[torch.Tensor, Tensors, torch.Tensor]:
        """As `StepwiseDecoder.advance`; the states are the sums in eq. 7, (B, K, D)."""
        state, cell = hidden
        context, weights = self.attend(state, *memory)
        context = self.to_gate(state).sigmoid() * context
        entering = self.input_to_gates(torch.cat([context, state], dim=2))
        state, cell = lstm_cell(gates + entering, cell)  # eq. 1 to 3
        output = words + self.hidden_to_state(self.dropout(state)) + self.context_to_state(context)
        return output, (state, cell), weights
