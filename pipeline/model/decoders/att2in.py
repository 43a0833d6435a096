"""Att2in: attention enters only the cell of the LSTM.

B images, K captions an image, P grid positions, D model width, H width of the states
"""

import torch
from torch import nn

from pipeline.config.model import DecoderConfig
from pipeline.model.decoders.attention import AdditiveAttention
from pipeline.model.decoders.stepwise import StepwiseDecoder, Tensors, set_forget_bias
from pipeline.model.protocols import Encoded


class Att2inDecoder(StepwiseDecoder):
    """An LSTM with a maxout cell input that alone sees the attended image.

    Source: Rennie et al., Self-critical Sequence Training for Image Captioning, arXiv:1612.00563,
    section 2, "Attention Model (Att2in)".
    """

    def __init__(self, config: DecoderConfig, dim: int, vocab_size: int) -> None:
        """
        Args:
            dim: D.
            vocab_size: V.
        """
        hidden_dim = config.hidden_dim
        # Input, forget and output gate, and the two halves of the maxout.
        super().__init__(config, dim, vocab_size, hidden_dim, gates_dim=5 * hidden_dim)
        self.hidden_to_gates = nn.Linear(hidden_dim, 5 * hidden_dim, bias=False)
        set_forget_bias(self.word_to_gates, hidden_dim)
        self.attend = AdditiveAttention(dim, hidden_dim, config.attention_dim)
        self.context_to_cell = nn.Linear(dim, 2 * hidden_dim, bias=False)

    def remember(self, encoded: Encoded) -> Tensors:
        """The keys (B, P, A) and the values (B, P, D)."""
        assert encoded.grid is not None
        return self.attend.to_keys(encoded.grid), encoded.grid

    def begin(self, encoded: Encoded) -> Tensors:
        """Zeros: hidden state and cell, (B, H) each."""
        return self.zeros(encoded, 2)

    def advance(
        self, words: torch.Tensor, gates: torch.Tensor, hidden: Tensors, memory: Tensors
    ) -> tuple[torch.Tensor, Tensors, torch.Tensor]:
        """As `StepwiseDecoder.advance`; the states are the LSTM's hidden states."""
        state, cell = hidden
        context, weights = self.attend(state, *memory)
        sums = (gates + self.hidden_to_gates(state)).to(cell.dtype)
        input_gate, forget_gate, output_gate, first, second = sums.chunk(5, dim=2)
        seen_first, seen_second = self.context_to_cell(context).to(cell.dtype).chunk(2, dim=2)
        candidate = torch.maximum(first + seen_first, second + seen_second)
        cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate
        state = output_gate.sigmoid() * cell.tanh()
        return state, (state, cell), weights
