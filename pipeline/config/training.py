"""Settings of the optimiser and of the training loop."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a linear warm-up of the learning rate and a cosine decay to 0.

    Args:
        lr: highest learning rate, for a global batch of `lr_batch_size` images.
        lr_batch_size: the global batch that `lr` is for.
        lr_scaling: how the highest rate follows data.global_batch_size. `none`: it is `lr` for any
            batch. `sqrt`: lr * (global_batch_size / lr_batch_size) ** 0.5, the usual rule for Adam.
            `linear`: lr * global_batch_size / lr_batch_size.
        warmup_epochs: length of the warm-up in epochs, rounded to whole steps; a third of the run
            at most, 0 for none.
        weight_decay: weight decay of matrices and convolutions; biases, norms and embeddings have
            none.
        clip: largest norm of the whole gradient; 0 does not clip.
    """

    lr: float = 1e-3
    lr_batch_size: int = 48
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    warmup_epochs: float = 0.2
    weight_decay: float = 0.01
    clip: float = 5.0


@dataclass(frozen=True)
class TrainConfig:
    """Length, precision, checkpoints and evaluation of the training.

    Args:
        steps: end after this many steps, or after `epochs` if that comes first; null for no limit.
        epochs: end after this many passes over the data, or after `steps` if that comes first; null
            for no limit.
        precision: `bf16` and `fp16` are mixed precision on GPUs; a CPU always computes in float32.
            The mixed precision that `accelerate launch` is given has no effect.
        label_smoothing: share of each target, 0 to 1, that is spread evenly over the vocabulary.
        accumulation_steps: micro-batches into which each process splits its part of a global batch,
            to save memory.
        checkpoint_every_epochs: epochs between checkpoints, such as 0.5. With 0, checkpoints are
            saved only because of `checkpoint_minutes`, before an evaluation, after a stop request
            and at the end.
        checkpoint_minutes: longest time between checkpoints in minutes, the most that a crash can
            cost; 0 for no limit.
        eval_every_epochs: epochs between evaluations, such as 0.5; 0 evaluates at the end only.
        keep: number of newest checkpoints to keep; the best one is kept in addition.
        resume: `auto` continues from the newest checkpoint of the run folder, and stops if it is
            damaged. `previous` sets damaged checkpoints aside and continues from the newest intact
            one. `never` refuses a run folder that has checkpoints.
    """

    steps: int | None = None
    epochs: int | None = 3
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    label_smoothing: float = 0.0
    accumulation_steps: int = 1
    checkpoint_every_epochs: float = 1.0
    checkpoint_minutes: float = 15.0
    eval_every_epochs: float = 1.0
    keep: int = 2
    resume: Literal["auto", "previous", "never"] = "auto"
