"""Image vector -> caption: one recurrent layer that sees the picture first, then the words.

N captions, D model width, H hidden width, L tokens, V vocabulary
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from pipeline.config.model import DecoderConfig
from shards.tokenizer import PAD

# Tallec and Ollivier, Can recurrent neural networks warp time?, arXiv:1804.11188, section 2.2.
KEEP_BIAS = 3.0

LENGTH_GROUPS = 4  # of a micro-batch's captions, on a CPU

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentDecoder(nn.Module):
    """Word embedding, one LSTM or GRU layer, a linear layer to the vocabulary.

    Source: Vinyals et al., Show and Tell, arXiv:1411.4555, eq. 10 to 12.
    """

    def __init__(self, config: DecoderConfig, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        self.rnn = LAYERS[config.kind](dim, config.hidden_dim, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.to_words = nn.Linear(config.hidden_dim, vocab_size)
        # The picture is seen once, at t=0. Gates that begin half open have forgotten it after a few
        # words; open this wide they keep it for about e**KEEP_BIAS. The second of an LSTM's four
        # gates and of a GRU's three is the one that keeps.
        keep_gate = slice(config.hidden_dim, 2 * config.hidden_dim)
        nn.init.constant_(self.rnn.bias_hh_l0[keep_gate], KEEP_BIAS)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Teacher forcing: the picture at t=0, the right words from t=1.

        Args:
            images: (N, D) float, one vector a caption.
            tokens: (N, L) int64, BOS first, right-padded. Padding comes after all that counts, so
                it changes nothing that counts.
        Returns:
            (N, L, V) float: at position l the scores of the word that follows tokens[:, l].
        """
        inputs = torch.cat([images[:, None], self.dropout(self.embed(tokens))], dim=1)
        if tokens.is_cuda:  # lengths would have to come from the device, and cuDNN hides padding
            states, _ = self.rnn(inputs)
        else:
            states = self._states_in_groups(inputs, 1 + (tokens != PAD).sum(dim=1))
        logits: torch.Tensor = self.to_words(self.dropout(states[:, 1:]))
        return logits

    def _states_in_groups(self, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The states of right-padded sequences, each computed little beyond its own end.

        One long caption would have all others computed to its length. In groups of like length a
        CPU needs half the time, less than a packed sequence does (docs/log.md).

        Args:
            inputs: (N, L, D) float.
            lengths: (N,) int64, without the padding.
        Returns:
            (N, L, H) float; 0 beyond the longest of a group.
        """
        order = lengths.argsort()
        states = []
        for part in order.chunk(LENGTH_GROUPS):
            longest = int(lengths[part].max())
            group, _ = self.rnn(inputs[part, :longest])
            states.append(pad(group, (0, 0, 0, inputs.shape[1] - longest)))
        return torch.cat(states)[order.argsort()]

    def start(self, images: torch.Tensor) -> Any:
        """The state after the picture. images: (N, D) float."""
        _, state = self.rnn(images[:, None])
        return state

    def step(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """One word on.

        Args:
            tokens: (N,) int64, the word just said; BOS at the beginning.
            state: of `start` or of the step before.
        Returns:
            (N, V) float scores of the next word, and the new state.
        """
        output, state = self.rnn(self.embed(tokens)[:, None], state)
        return self.to_words(output[:, 0]), state
