"""Bottom-up and top-down attention: one LSTM looks, another writes.

B images, K captions an image, P grid positions, D model width, H width of the states
"""

import torch
from torch import nn

from pipeline.config.model import DecoderConfig
from pipeline.model.decoders.attention import AdditiveAttention
from pipeline.model.decoders.stepwise import StepwiseDecoder, Tensors, lstm_cell, set_forget_bias
from pipeline.model.protocols import Encoded


class UpDownDecoder(StepwiseDecoder):
    """A top-down attention LSTM and a language LSTM, over grid positions instead of regions.

    Source: Anderson et al., Bottom-Up and Top-Down Attention for Image Captioning and Visual
    Question Answering, arXiv:1707.07998, section 3.2, eq. 1 to 7.
    """

    def __init__(self, config: DecoderConfig, dim: int, vocab_size: int) -> None:
        """
        Args:
            dim: D.
            vocab_size: V.
        """
        hidden_dim = config.hidden_dim
        super().__init__(config, dim, vocab_size, hidden_dim, gates_dim=4 * hidden_dim)
        # Eq. 2: the attention LSTM's input is the language LSTM's state, the mean of the grid and
        # the word. What the image adds is computed once an image.
        self.image_to_gates = nn.Linear(dim, 4 * hidden_dim, bias=False)
        self.hidden_to_gates = nn.Linear(2 * hidden_dim, 4 * hidden_dim, bias=False)
        set_forget_bias(self.word_to_gates, hidden_dim)
        self.attend = AdditiveAttention(dim, hidden_dim, config.attention_dim)  # eq. 3 to 5
        self.language_to_gates = nn.Linear(dim + 2 * hidden_dim, 4 * hidden_dim)  # eq. 6
        set_forget_bias(self.language_to_gates, hidden_dim)

    def remember(self, encoded: Encoded) -> Tensors:
        """What the image adds to the gates (B, 1, 4H), the keys (B, P, A), the values (B, P, D)."""
        grid = encoded.grid
        assert grid is not None
        return self.image_to_gates(encoded.pooled)[:, None], self.attend.to_keys(grid), grid

    def begin(self, encoded: Encoded) -> Tensors:
        """Zeros: hidden state and cell of the attention LSTM, then of the language LSTM."""
        return self.zeros(encoded, 4)

    def advance(
        self, words: torch.Tensor, gates: torch.Tensor, hidden: Tensors, memory: Tensors
    ) -> tuple[torch.Tensor, Tensors, torch.Tensor]:
        """As `StepwiseDecoder.advance`; the states are the language LSTM's hidden states, eq. 7."""
        attention_hidden, attention_cell, language_hidden, language_cell = hidden
        image_gates, keys, values = memory
        recurrent = self.hidden_to_gates(torch.cat([language_hidden, attention_hidden], dim=2))
        attention_hidden, attention_cell = lstm_cell(
            gates + image_gates + recurrent, attention_cell
        )
        context, weights = self.attend(attention_hidden, keys, values)
        language_input = torch.cat([context, attention_hidden, language_hidden], dim=2)
        language_hidden, language_cell = lstm_cell(
            self.language_to_gates(language_input), language_cell
        )
        new = (attention_hidden, attention_cell, language_hidden, language_cell)
        return language_hidden, new, weights
