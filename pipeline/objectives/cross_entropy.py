"""Cross-entropy of the next token, summed over a micro-batch.

B images, K captions an image, N = B*K captions, S image side in pixels, L tokens,
T valid tokens of the micro-batch, H width of the states
"""

from typing import NamedTuple

import torch

from pipeline.data.batch import Batch
from pipeline.model.captioner import Captioner
from pipeline.objectives.objective import Loss, Objective, Prepared
from pipeline.objectives.projection import cross_entropy
from shards.tokenizer import PAD


class Inputs(NamedTuple):
    """What cross-entropy needs of a micro-batch."""

    images: torch.Tensor  # (B, S, S, 3) uint8
    tokens: torch.Tensor  # (B, K, L) int64: BOS, words, EOS, then PAD
    positions: torch.Tensor  # (T,) int64: of the valid ones among the (N, L - 1) targets, flattened
    targets: torch.Tensor  # (T,) int64
    weights: torch.Tensor  # (T,) float32


class CrossEntropy(Objective):
    """The negative log-likelihood of the reference captions, in nats; its terms are tokens.

    Source: Vinyals et al., Show and Tell, arXiv:1411.4555, eq. 10.
    """

    def __init__(self, captioner: Captioner, label_smoothing: float = 0.0) -> None:
        """
        Args:
            label_smoothing: share of each target that is spread over the whole vocabulary.
        """
        super().__init__(captioner)
        self.label_smoothing = label_smoothing

    def prepare(self, batch: Batch) -> Prepared:
        """Find the tokens to predict: all but PAD and those of empty slots.

        This is done on the host, where their number is known without waiting for a device.
        """
        targets = batch.tokens[..., 1:]
        weights = batch.weights[..., None].expand(targets.shape).flatten()
        targets = targets.flatten()
        positions = ((targets != PAD) & (weights != 0)).nonzero()[:, 0]
        targets, weights = targets[positions], weights[positions]
        num_terms = float(weights.sum())
        if batch.images.is_pinned():  # then these are copied to the GPU asynchronously as well
            positions, targets, weights = (x.pin_memory() for x in (positions, targets, weights))
        inputs = Inputs(batch.images, batch.tokens, positions, targets, weights)
        return Prepared(num_terms, inputs)

    def forward(self, inputs: Inputs) -> Loss:
        """Teacher forcing: from each prefix of a reference caption to the token after it."""
        decoded = self.captioner(inputs.images, inputs.tokens[..., :-1])
        valid = decoded.states.flatten(0, 1).index_select(0, inputs.positions)
        decoder = self.captioner.decoder
        loss = cross_entropy(
            valid, decoder.to_words, inputs.targets, inputs.weights, self.label_smoothing
        )
        if not decoder.attention_penalty:
            return Loss(loss, {})
        penalty = doubly_stochastic_penalty(decoded.attention, inputs)
        return Loss(loss + decoder.attention_penalty * penalty, {"attention_penalty": penalty})


def doubly_stochastic_penalty(attention: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """How far the attention to each position is from a sum of 1 over the words of a caption.

    Args:
        attention: (N, L - 1, P) float, of each word that is predicted.
        inputs: of the same micro-batch.
    Returns:
        () float: the squared distances, summed over positions and captions.
    Source: Xu et al., Show, Attend and Tell, arXiv:1502.03044, eq. 14.
    """
    num_captions, length, _ = attention.shape
    weights = attention.new_zeros(num_captions * length)
    weights = weights.index_copy(0, inputs.positions, inputs.weights.to(attention.dtype))
    weights = weights.view(num_captions, length, 1)
    sums = (attention * (weights > 0)).sum(dim=1)  # (N, P)
    caption_weights = weights.amax(dim=1)  # 0 where a slot is empty
    return ((1.0 - sums).square() * caption_weights).sum()
