"""Optimiser and training loop."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """AdamW; the learning rate rises linearly, then falls to 0 along half a cosine.

    Args:
        lr: highest learning rate.
        warmup_steps: steps until it is reached.
        weight_decay: on matrices and convolutions, not on biases, norms and embeddings.
        clip: largest norm of the whole gradient; 0 does not clip.
    """

    lr: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    clip: float = 5.0


@dataclass(frozen=True)
class TrainConfig:
    """How long, how exact, and how safe.

    Args:
        steps: end after so many steps, if the epochs have not ended before.
        epochs: end after so many passes over the data; none leaves it to `steps`.
        precision: `bf16` and `fp16` are mixed precision on GPUs; a CPU keeps to float32.
        accumulation_steps: parts that each process cuts its share of a batch into, to save memory.
        checkpoint_every: steps from commit to commit, at the most.
        checkpoint_minutes: minutes from commit to commit, at the most: what a crash may cost, where
            steps are slow. 0 leaves it to the steps.
        eval_every: steps from evaluation to evaluation; 0 evaluates at the end only.
        keep: commits kept, the newest; the best one is kept besides.
        resume: `auto` goes on from the newest commit of the run folder, and ends if that is
            damaged; `previous` then goes on from the newest that is not, and renames the damaged
            ones; `never` refuses a folder that has any.

    Whichever of `steps` and `epochs` is reached first ends the run.
    """

    steps: int | None = None
    epochs: int | None = 3
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulation_steps: int = 1
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 15.0
    eval_every: int = 1000
    keep: int = 2
    resume: Literal["auto", "previous", "never"] = "auto"
