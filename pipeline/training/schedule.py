"""When a run evaluates and commits, and its learning rate."""

from dataclasses import dataclass

from pipeline.config.training import OptimConfig, TrainConfig
from pipeline.training.optimizer import learning_rate


@dataclass(frozen=True)
class Schedule:
    """When a run evaluates and commits, and its learning rate."""

    optim: OptimConfig
    train: TrainConfig
    num_steps: int

    def learning_rate(self, updates: int) -> float:
        return learning_rate(self.optim, updates, self.num_steps)

    def evaluation_due(self, step: int) -> bool:
        return step >= self.num_steps or _is_due(step, self.train.eval_every)

    def commit_due(self, step: int) -> bool:
        return step >= self.num_steps or _is_due(step, self.train.checkpoint_every)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0
