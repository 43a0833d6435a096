"""What training minimises, as the training step sees it.

B images, K captions an image, L tokens
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.data.batch import Batch
from pipeline.model.captioner import Captioner


class Prepared(NamedTuple):
    """A micro-batch made ready on the host."""

    num_terms: float  # what the loss is divided by: how many tokens, or other terms, it sums
    inputs: Any  # for `forward`: a NamedTuple, whose tensors the step copies to the device


class Loss(NamedTuple):
    """The loss of a micro-batch as sums, since only the step knows the global batch's count."""

    sum: torch.Tensor  # () float
    logged: Mapping[str, torch.Tensor]  # sums, () each, the same names always; no gradient


class Objective(nn.Module, ABC):
    """Turns a batch into a loss of its captioner.

    The training step minimises the sum of `Loss.sum` over all micro-batches of all ranks, divided
    by the sum of `Prepared.num_terms`, and logs each sum of `Loss.logged` divided by the same.
    """

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.captioner = captioner

    @abstractmethod
    def prepare(self, batch: Batch) -> Prepared:
        """Count the terms and make the inputs of `forward`, on the host and without the model."""

    @abstractmethod
    def forward(self, inputs: Any) -> Loss:
        """Compute the loss of prepared inputs, on the device."""
