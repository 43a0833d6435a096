"""When the learning rate changes, and when to evaluate and to commit: functions of the step."""

import math
from dataclasses import dataclass

from pipeline.config.training import OptimConfig, TrainConfig


@dataclass(frozen=True)
class Schedule:
    """What a run does at which step, computed from settings in epochs.

    Args:
        peak_lr: highest learning rate, already scaled for the global batch.
        warmup_steps: optimiser steps until it is reached.
        eval_interval: steps between evaluations, as a fraction; 0 evaluates at the end only.
        commit_interval: steps between checkpoints, likewise.
        num_steps: steps of the whole run.
        frozen_steps: steps at the beginning in which the encoder's backbone is not trained.
    """

    peak_lr: float
    warmup_steps: int
    eval_interval: float
    commit_interval: float
    num_steps: int
    frozen_steps: int = 0

    def learning_rate(self, updates: int) -> float:
        """Linear warm-up to `peak_lr`, then half a cosine down to 0.

        Args:
            updates: optimiser steps taken so far. A step that fp16 skipped does not count.
        """
        if updates < self.warmup_steps:
            return self.peak_lr * (updates + 1) / self.warmup_steps
        progress = (updates - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1)
        return self.peak_lr * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))

    def backbone_frozen(self, step: int) -> bool:
        """Whether a step leaves the encoder's backbone as it is."""
        return step < self.frozen_steps

    def evaluation_due(self, step: int) -> bool:
        """Whether the validation set is scored after so many steps."""
        return self._due(step, self.eval_interval)

    def commit_due(self, step: int) -> bool:
        """Whether a checkpoint is committed after so many steps."""
        return self._due(step, self.commit_interval)

    def _due(self, step: int, interval: float) -> bool:
        """Whether the run or an interval ends with this step.

        Intervals need not be whole numbers of steps. Each end is rounded to its nearest step, so
        that the rounding does not add up. An end within the last step of the run is left to the end
        of the run, or 3 epochs of 308.04 steps would evaluate after steps 924 and 925.
        """
        if step >= self.num_steps:
            return True
        if interval == 0 or step == 0:
            return False
        interval = max(interval, 1.0)
        num_ends = math.floor((step + 0.5) / interval)
        ends = num_ends > math.floor((step - 0.5) / interval)
        return ends and num_ends * interval <= self.num_steps - 1


def make_schedule(
    optim: OptimConfig,
    train: TrainConfig,
    num_samples: int,
    batch_size: int,
    num_steps: int,
    frozen_epochs: float = 0.0,
) -> Schedule:
    """Turn the settings in epochs into steps.

    Args:
        num_samples: images of an epoch.
        batch_size: images of a global batch.
        num_steps: steps of the whole run.
        frozen_epochs: epochs in which the encoder's backbone is not trained.
    Raises:
        ValueError: the warm-up takes more than a third of the run, or the backbone is frozen to
            its end.
    """
    steps_per_epoch = num_samples / batch_size
    warmup_steps = round(optim.warmup_epochs * steps_per_epoch)
    if 3 * warmup_steps > num_steps:
        longest = math.floor(1000 * (num_steps // 3) / steps_per_epoch) / 1000
        raise ValueError(
            f"optim.warmup_epochs: {optim.warmup_epochs:g} epochs are {warmup_steps:,} steps, more "
            f"than a third of the run, which has {num_steps:,}; set it to {longest:g} or less"
        )
    frozen_steps = round(frozen_epochs * steps_per_epoch)
    if 0 < num_steps <= frozen_steps:
        raise ValueError(
            f"model.encoder.frozen_epochs: {frozen_epochs:g} epochs are {frozen_steps:,} steps, "
            f"but the run has {num_steps:,}, so the backbone would never be trained; lower it, or "
            "set model.encoder.tune to `none`"
        )
    return Schedule(
        peak_lr=scaled_learning_rate(optim, batch_size),
        warmup_steps=warmup_steps,
        eval_interval=train.eval_every_epochs * steps_per_epoch,
        commit_interval=train.checkpoint_every_epochs * steps_per_epoch,
        num_steps=num_steps,
        frozen_steps=frozen_steps,
    )


def scaled_learning_rate(optim: OptimConfig, batch_size: int) -> float:
    """The highest learning rate for a global batch of this size.

    Source: the linear rule, Goyal et al., arXiv:1706.02677; the square root for Adam, Malladi et
        al., arXiv:2205.10287.
    """
    ratio = batch_size / optim.lr_batch_size
    factors = {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}
    return optim.lr * factors[optim.lr_scaling]
