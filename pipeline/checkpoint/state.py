"""TrainState: how far a run is. It goes into a checkpoint and comes out of it unchanged."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self


@dataclass(frozen=True)
class TrainState:
    """How far a run is.

    Args:
        step: global batches consumed.
        updates: optimiser steps taken: fewer than `step` where fp16 skipped some.
        num_bad: bad samples left out so far.
        samples_consumed: positions of the sample sequence consumed; the last batch of a run may
            hold fewer samples than the others.
    """

    step: int = 0
    updates: int = 0
    num_bad: int = 0
    samples_consumed: int = 0

    def after_step(self, num_samples: int, num_bad: int, skipped: bool) -> Self:
        """The state after one more step.

        Args:
            num_samples: positions of the sample sequence that the step consumed.
            num_bad: bad samples among them.
            skipped: whether the optimiser left the weights as they were (fp16).
        """
        return replace(
            self,
            step=self.step + 1,
            updates=self.updates + (not skipped),
            num_bad=self.num_bad + num_bad,
            samples_consumed=self.samples_consumed + num_samples,
        )

    def to_json(self) -> dict[str, Any]:
        """The state as plain JSON values."""
        return asdict(self)
