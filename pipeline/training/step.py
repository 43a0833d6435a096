"""One optimiser step over one global batch, exact for any number of ranks and micro-batches.

Every rank runs its A micro-batches. DDP averages gradients over the W ranks, so each micro-batch's
summed loss is scaled by W / (count of the whole global batch), which is known before the first
backward. The result is the gradient of the mean over all terms, as one process would compute it,
except for the statistics of BatchNorm layers in training mode and for dropout.
"""

import contextlib
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import send_to_device
from torch import nn

from pipeline.data.batch import Batch
from pipeline.objectives.objective import Loss, Objective
from pipeline.observability.monitor import StepResult
from pipeline.runtime.errors import ExplainedError
from pipeline.training.optimizer import set_learning_rate


class NonFiniteError(ExplainedError, ArithmeticError):
    """The loss or the gradient is not finite; the weights are still those of the step before."""


class TrainStep:
    """Takes the optimiser steps of a run."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        clip: float,
    ) -> None:
        """
        Args:
            model: an `Objective`, as prepared by the accelerator.
            optimizer: as prepared by the accelerator.
            clip: largest gradient norm; 0 does not clip.
        """
        self.accelerator = accelerator
        self.model = model
        self.objective: Objective = accelerator.unwrap_model(model)
        self.optimizer = optimizer
        self.clip = clip

    def take(
        self,
        batches: Sequence[Batch],
        learning_rate: float,
        wait_s: float = 0.0,
        stop_requested: bool = False,
    ) -> StepResult:
        """Take one step.

        Args:
            batches: this rank's A micro-batches.
            wait_s: seconds that this rank waited for the batches.
            stop_requested: whether this rank was asked to stop.
        Raises:
            NonFiniteError: on all ranks, before the weights are touched.
        """
        accelerator = self.accelerator
        prepared = [self.objective.prepare(batch) for batch in batches]
        num_images = sum(len(batch.ids) for batch in batches)
        num_bad = sum(len(batch.bad) for batch in batches)
        # One small exchange tells every rank the count to divide by, and whether to stop.
        mine = [sum(p.num_terms for p in prepared), num_images, num_bad, wait_s, stop_requested]
        totals = _sum_over_ranks(accelerator, torch.tensor(mine, dtype=torch.float64))
        losses = self._backward([p.inputs for p in prepared], totals[0])
        set_learning_rate(self.optimizer, learning_rate)
        grad_norm = accelerator.clip_grad_norm_(self.model.parameters(), self.clip or torch.inf)
        names = list(losses[0].logged)
        own = sum(torch.stack([x.sum, *x.logged.values()]).detach().double() for x in losses)
        assert isinstance(own, torch.Tensor)  # and not the sum of no micro-batches
        sums = _sum_over_ranks(accelerator, own)
        values = torch.cat([torch.stack([own[0], grad_norm.double()]), totals, sums])
        # The step's only wait for the device. It comes before the weights are touched, so that a
        # loss or gradient that is not finite never reaches them.
        own_loss, norm, count, images, bad, waited, stop, loss, *logged = values.tolist()
        loss, *logged = (value / max(count, 1.0) for value in (loss, *logged))
        if not _all_finite(loss, norm) and accelerator.mixed_precision != "fp16":
            raise NonFiniteError(_describe(loss, own_loss, norm, batches))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return StepResult(
            loss=loss,
            grad_norm=norm,
            num_terms=int(count),
            num_images=int(images),
            num_bad=int(bad),
            wait_s=waited / accelerator.num_processes,
            stop=stop > 0,
            # accelerate does not see that a fused optimiser skipped: its kernel decides that.
            skipped=not _all_finite(norm),
            logged=dict(zip(names, logged, strict=True)),
        )

    def _backward(self, inputs: Sequence[object], count: torch.Tensor) -> list[Loss]:
        """Forward and backward of each micro-batch; the last one's sums gradients over ranks.

        Args:
            inputs: on the host; if pinned, they are copied to the device asynchronously.
            count: () float64, of the whole global batch.
        """
        accelerator = self.accelerator
        scale = accelerator.num_processes / count.clamp(min=1.0)
        losses = []
        for number, part in enumerate(inputs, start=1):
            last = number == len(inputs)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.model(send_to_device(part, accelerator.device, non_blocking=True))
                accelerator.backward(loss.sum * scale.to(loss.sum.dtype))
            losses.append(Loss(loss.sum.detach(), loss.logged))
        return losses


def _sum_over_ranks(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Add up each value over all ranks, in float64, so that counts stay exact."""
    values = values.to(accelerator.device, non_blocking=True)
    total: torch.Tensor = accelerator.reduce(values, reduction="sum")
    return total


def _all_finite(*values: float) -> bool:
    return all(abs(value) < float("inf") for value in values)  # NaN compares false


def _describe(loss: float, own_loss: float, norm: float, batches: Sequence[Batch]) -> str:
    ids = [image_id for batch in batches for image_id in batch.ids]
    at_fault = "" if _all_finite(own_loss) else ", and this process's own part of it is not finite"
    return f"loss {loss}, gradient norm {norm}{at_fault}; this process's images: {ids}"
