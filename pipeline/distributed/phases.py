"""Phases: what the main thread of a process is doing, in the order of one round.

A round is one pass through the training loop, numbered from 0: the data and the step itself, and
after it the checkpoint and the evaluation of that step.
"""

from dataclasses import dataclass
from enum import IntEnum


class Phase(IntEnum):
    """What a main thread is doing, in the order of one round."""

    DATA = 0
    STEP = 1
    COMMIT = 2
    EVALUATE = 3
    GATHER = 4
    SCORE = 5
    WAIT = 6
    DONE = 7


DOING = {
    Phase.DATA: "waiting for data",
    Phase.STEP: "computing",
    Phase.COMMIT: "saving a checkpoint",
    Phase.EVALUATE: "captioning the validation set",
    Phase.GATHER: "gathering captions",
    Phase.SCORE: "scoring captions",
    Phase.WAIT: "waiting for the other processes",
}


def round_of(phase: Phase, step: int) -> int:
    """The round that a phase belongs to.

    Args:
        step: steps done so far. A checkpoint and an evaluation come after the step of their round,
            which is counted by then.
    """
    return step if phase in (Phase.DATA, Phase.STEP) else max(step - 1, 0)


NO_MESSAGE = -1  # number of the last message of a process that has not sent one yet


@dataclass(frozen=True)
class ProcessState:
    """What a process says about itself in a heartbeat.

    Args:
        number: of the message; NO_MESSAGE before the first one.
        step: the round of the training loop.
        age_s: how long its main thread has been in this phase.
        limit_s: how long it may be.
    """

    number: int
    step: int
    phase: Phase
    age_s: float
    limit_s: float
    pid: int
    host: str
