"""One optimiser step over one global batch, exact for any number of ranks and micro-batches.

Every rank runs its A micro-batches. DDP averages gradients over the W ranks, so each part's summed
loss is scaled by W / (tokens of the whole global batch), known before the first backward: what
comes out is the gradient of the mean over all tokens, as one process would compute it.
"""

import contextlib
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from pipeline.data.batch import Batch
from pipeline.objectives.cross_entropy import caption_loss, count_tokens
from pipeline.observability.monitor import StepResult
from pipeline.runtime.errors import ExplainedError


class NonFiniteError(ExplainedError, ArithmeticError):
    """The loss or the gradient is not a number; the weights are still those of the step before."""


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    batches: Sequence[Batch],
    learning_rate: float,
    clip: float,
    wait_s: float = 0.0,
    stop_requested: bool = False,
) -> StepResult:
    """Take one step.

    Args:
        model: as prepared by the accelerator.
        optimizer: as prepared by the accelerator.
        batches: this rank's A micro-batches.
        clip: largest gradient norm; 0 does not clip.
        wait_s: seconds this rank waited for the batches.
        stop_requested: whether this rank was asked to stop.
    Raises:
        NonFiniteError: on all ranks, before the weights are touched.
    """
    device = accelerator.device
    num_tokens = sum(float(count_tokens(batch.tokens[..., 1:], batch.weights)) for batch in batches)
    num_images = sum(len(batch.ids) for batch in batches)
    num_bad = sum(len(batch.bad) for batch in batches)
    # One small exchange tells every rank the tokens to divide by, and whether to stop.
    totals = _sum_over_ranks(accelerator, [num_tokens, num_images, num_bad, wait_s, stop_requested])
    scale = accelerator.num_processes / totals[0].clamp(min=1.0)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(batches, start=1):
        last = number == len(batches)
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            part = _loss_sum(model, batch, device)
            accelerator.backward(part * scale.to(part.dtype))
        loss_sum += part.detach()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), clip or torch.inf)
    total_loss = _sum_over_ranks(accelerator, [loss_sum])
    values = torch.cat([total_loss, torch.stack([loss_sum, grad_norm]).double(), totals])
    # The step's only wait for the device, placed so that a bad step never reaches the weights.
    loss, own_loss, norm, *counts = values.tolist()
    if not _all_finite(loss, norm) and accelerator.mixed_precision != "fp16":
        raise NonFiniteError(_describe(loss / max(counts[0], 1.0), own_loss, norm, batches))
    optimizer.step()
    optimizer.zero_grad()
    return StepResult(
        loss=loss / max(counts[0], 1.0),
        grad_norm=norm,
        num_tokens=int(counts[0]),
        num_images=int(counts[1]),
        num_bad=int(counts[2]),
        wait_s=counts[3] / accelerator.num_processes,
        stop=counts[4] > 0,
        # accelerate's own answer is wrong for fused optimisers, whose kernel does the skipping.
        skipped=not _all_finite(norm),
    )


def _loss_sum(model: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    """Forward of one micro-batch; the pinned batch crosses to the device meanwhile."""
    images = batch.images.to(device, non_blocking=True)
    tokens = batch.tokens.to(device, non_blocking=True)
    weights = batch.weights.to(device, non_blocking=True)
    logits = model(images, tokens[..., :-1])
    loss_sum, _ = caption_loss(logits, tokens[..., 1:].flatten(0, 1), weights.flatten())
    return loss_sum


def _sum_over_ranks(
    accelerator: Accelerator, values: Sequence[float | torch.Tensor]
) -> torch.Tensor:
    """Add up each value over all ranks: float64, so that counts stay exact."""
    if isinstance(values[0], torch.Tensor):
        tensor = torch.stack([v.double() for v in values if isinstance(v, torch.Tensor)])
    else:  # one copy to the device, which waits for nothing
        tensor = torch.tensor(values, dtype=torch.float64)
        tensor = tensor.to(accelerator.device, non_blocking=True)
    total: torch.Tensor = accelerator.reduce(tensor, reduction="sum")
    return total


def _all_finite(*values: float) -> bool:
    return all(abs(value) < float("inf") for value in values)  # NaN compares false


def _describe(loss: float, own_loss: float, norm: float, batches: Sequence[Batch]) -> str:
    ids = [image_id for batch in batches for image_id in batch.ids]
    at_fault = "" if _all_finite(own_loss) else ", and this process's own part of it is not finite"
    return f"loss {loss}, gradient norm {norm}{at_fault}; this process's images: {ids}"
