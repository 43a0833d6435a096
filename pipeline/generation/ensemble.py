"""Several captioners as one: each token's probability is the mean of theirs.

B images, M captions, K members, V vocabulary
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.model.captioner import Captioner
from pipeline.model.protocols import Decoder, Encoded
from shards.tokenizer import BOS, PAD


class EncodedByAll(tuple[Encoded, ...]):
    """A batch of images as the encoders of all members give it."""

    @property
    def pooled(self) -> torch.Tensor:
        """Of the first member."""
        return self[0].pooled


class Ensemble(nn.Module):
    """Captioners of one vocabulary, used like one captioner for generation.

    Args:
        captioners: K captioners, whose models may differ.
    """

    def __init__(self, captioners: Sequence[Captioner]) -> None:
        super().__init__()
        self.members = nn.ModuleList(captioners)  # so that `to` and `eval` reach them
        self.captioners = tuple(captioners)
        self.decoder = EnsembleDecoder([member.decoder for member in captioners])

    def encoder(self, images: torch.Tensor) -> EncodedByAll:
        """Encode images with every member's encoder."""
        return EncodedByAll(member.encoder(images) for member in self.captioners)


class EnsembleDecoder:
    """A `Decoder` whose states and scores come from all members.

    States are a tuple with those of each member.
    """

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        self._decoders = decoders

    def to_words(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Log of the mean probability of each token.

        Args:
            states: K times (M, H).
        Returns:
            (M, V) float32, with -inf for PAD and BOS, which are not part of a caption.
        """
        log_probs = []
        for decoder, member_states in zip(self._decoders, states, strict=True):
            scores: torch.Tensor = decoder.to_words(member_states).float()
            scores[:, PAD : BOS + 1] = -torch.inf
            log_probs.append(scores.log_softmax(dim=1))
        if len(log_probs) == 1:
            return log_probs[0]
        total: torch.Tensor = torch.stack(log_probs).logsumexp(dim=0)
        mean: torch.Tensor = total - math.log(len(log_probs))
        return mean

    def start(self, encoded: EncodedByAll) -> Any:
        """The members' states before the first token."""
        pairs = zip(self._decoders, encoded, strict=True)
        return tuple(decoder.start(part) for decoder, part in pairs)

    def step(self, tokens: torch.Tensor, state: Any) -> tuple[tuple[torch.Tensor, ...], Any]:
        """Advance all members by the same tokens."""
        pairs = zip(self._decoders, state, strict=True)
        states, state = zip(*(decoder.step(tokens, part) for decoder, part in pairs), strict=True)
        return states, state

    def reorder(self, state: Any, index: torch.Tensor) -> Any:
        """The state of chosen captions."""
        pairs = zip(self._decoders, state, strict=True)
        return tuple(decoder.reorder(part, index) for decoder, part in pairs)

    def attention(self, state: Any) -> None:
        """None: the members look at different positions."""
