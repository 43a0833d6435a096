"""Show and Tell: one recurrent layer that sees the image vector first, then the tokens.

B images, K captions an image, N = B*K captions, D model width, H width of the states, L tokens,
V vocabulary
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from pipeline.config.model import DecoderConfig
from pipeline.model.protocols import Encoded
from shards.tokenizer import PAD

# Tallec and Ollivier, Can recurrent neural networks warp time?, arXiv:1804.11188, section 2.2.
KEEP_BIAS = 3.0

LENGTH_GROUPS = 4  # that the captions of a micro-batch are divided into on a CPU

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentDecoder(nn.Module):
    """Token embedding, one LSTM or GRU layer, a linear layer to the vocabulary.

    The image enters as the input of t=0, and only the recurrent state carries it on.
    Source: Vinyals et al., Show and Tell, arXiv:1411.4555, eq. 10 to 12.
    """

    def __init__(self, config: DecoderConfig, dim: int, vocab_size: int) -> None:
        """
        Args:
            dim: D.
            vocab_size: V.
        """
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        self.rnn = LAYERS[config.kind](dim, config.hidden_dim, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.to_words = nn.Linear(config.hidden_dim, vocab_size)
        # The image is seen once, at t=0. With gates that are half open at initialisation its trace
        # is gone after a few tokens; with this bias it lasts for about e**KEEP_BIAS tokens. The
        # gate that keeps the state is the second of an LSTM's four and of a GRU's three.
        keep_gate = slice(config.hidden_dim, 2 * config.hidden_dim)
        nn.init.constant_(self.rnn.bias_hh_l0[keep_gate], KEEP_BIAS)

    def forward(self, encoded: Encoded, tokens: torch.Tensor) -> torch.Tensor:
        """The states of all positions, after dropout.

        Args:
            encoded: B images; the recurrent layer reads `pooled`.
            tokens: (B, K, L) int64, BOS first, right-padded.
        Returns:
            (N, L, H) float. On a CPU, states of padding may be 0.
        """
        images = encoded.pooled.repeat_interleave(tokens.shape[1], dim=0)
        tokens = tokens.flatten(0, 1)
        inputs = torch.cat([images[:, None], self.dropout(self.embed(tokens))], dim=1)
        if tokens.is_cuda:  # reading the lengths would wait for the device
            states = self._recur(inputs)[0][:, 1:]
        else:
            states = self._states_in_groups(inputs, 1 + (tokens != PAD).sum(dim=1))
        dropped: torch.Tensor = self.dropout(states)
        return dropped

    def _states_in_groups(self, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The states of right-padded sequences from t=1 on, computed in groups of similar length.

        In one group, all captions would be computed to the length of the longest. Groups halve the
        time on a CPU, and are faster than a packed sequence (docs/log.md).

        Args:
            inputs: (N, 1 + L, D) float.
            lengths: (N,) int64, of the inputs without the padding.
        Returns:
            (N, L, H) float; 0 beyond the longest caption of a group.
        """
        order = lengths.argsort()
        states = []
        groups = inputs.index_select(0, order).chunk(LENGTH_GROUPS)
        for group, group_lengths in zip(groups, lengths[order].chunk(LENGTH_GROUPS), strict=True):
            longest = int(group_lengths[-1])
            outputs, _ = self._recur(group[:, :longest])
            states.append(pad(outputs[:, 1:], (0, 0, 0, inputs.shape[1] - longest)))
        return torch.cat(states).index_select(0, order.argsort())

    def _recur(self, inputs: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """The recurrent layer, always in the type of its weights.

        Under autocast, also to bfloat16, torch runs cuDNN's recurrent layers in float16. Without
        loss scaling their gradients would lose most of their digits (seen with torch 2.11 to 2.15).
        """
        with torch.autocast(inputs.device.type, enabled=False):
            return self.rnn(inputs.to(self.rnn.weight_hh_l0.dtype), state)

    def start(self, encoded: Encoded) -> Any:
        """The recurrent layer's state after the image: (1, N, H), an LSTM's as a pair."""
        _, state = self._recur(encoded.pooled[:, None])
        return state

    def step(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Advance by one token: (N,) int64 and a state -> (N, H) float and the new state."""
        output, state = self._recur(self.embed(tokens)[:, None], state)
        return output[:, 0], state

    def reorder(self, state: Any, index: torch.Tensor) -> Any:
        """The state of the rows `index`, (N',) int64."""
        if isinstance(state, tuple):
            return tuple(part[:, index] for part in state)
        return state[:, index]

    def attention(self, state: Any) -> None:
        """None: the recurrent layer sees the whole image at once."""
