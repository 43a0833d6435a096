"""Which process of a run is at fault, and how long each phase may take: pure functions.

A round is one pass through the training loop, numbered from 0: the data and the step itself, and
after it the checkpoint and the evaluation of that step.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

LOST_S = 20.0  # silence after which a process counts as lost
LEAST_LIMIT_S = 30.0  # a step may always take this long,
SLOWER_THAN_USUAL = 10.0  # and this many times as long as it usually does
FIRST_LIMIT_S = 600.0  # limit of the first steps, in which libraries tune themselves
NUM_FIRST = 2  # how many steps that are
FETCH_LIMIT_S = 900.0  # for shards behind URLs: downloads have time limits and retries of their own


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
    Phase.COMMIT: "committing",
    Phase.EVALUATE: "captioning the validation set",
    Phase.GATHER: "gathering captions",
    Phase.SCORE: "scoring captions",
    Phase.WAIT: "waiting for the other processes",
}

# How long each of these may take, in seconds. Captioning one batch may take longer than this where
# training steps do.
LIMITS_S = {
    Phase.COMMIT: 900.0, Phase.EVALUATE: 120.0, Phase.GATHER: 120.0, Phase.SCORE: 1800.0,
    Phase.WAIT: float("inf"), Phase.DONE: float("inf"),
}  # fmt: skip


UNHEARD = -1  # message number of a process that has not sent one yet


@dataclass(frozen=True)
class State:
    """What a process says about itself in a heartbeat.

    Args:
        number: of the message; UNHEARD before the first one.
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


def round_of(phase: Phase, step: int) -> int:
    """The round that a phase belongs to.

    Args:
        step: steps done so far. A checkpoint and an evaluation come after the step of their round,
            which is counted by then.
    """
    return step if phase in (Phase.DATA, Phase.STEP) else max(step - 1, 0)


def find_fault(states: Sequence[State], silent_s: Sequence[float]) -> tuple[int, str] | None:
    """The rank that holds up a run, and the reason; None where there is none.

    A rank that waits for others is either ahead of them, or came to the same phase before them. So
    only the rank that came last to the phase that is furthest behind can be at fault.

    Args:
        states: the latest state of each rank.
        silent_s: seconds since it arrived.
    """
    at_work = [(rank, state) for rank, state in enumerate(states) if state.phase != Phase.DONE]
    for rank, state in at_work:
        if silent_s[rank] > LOST_S and state.number != UNHEARD:
            return rank, (
                f"has not been heard of for {silent_s[rank]:.0f} s: killed, stopped, or its "
                "machine cut off"
            )
    if not at_work:
        return None
    step, phase = min((state.step, state.phase) for _, state in at_work)
    behind = [rank for rank, state in at_work if (state.step, state.phase) == (step, phase)]
    age_s, rank = min((states[rank].age_s + silent_s[rank], rank) for rank in behind)
    if age_s > states[rank].limit_s:
        others = len(behind) - 1
        or_who = f", or one of the {others} that came to this before it" if others else ""
        return rank, f"has been {DOING[phase]} in step {step} for {age_s:.0f} s: it hangs{or_who}"
    return None


def usual_limit(phase: Phase, lately_s: Mapping[Phase, Sequence[float]]) -> float:
    """How long a main thread may be in a phase, in seconds.

    Args:
        lately_s: durations of the latest DATA and STEP phases.
    """
    least = LIMITS_S.get(phase, LEAST_LIMIT_S)
    if phase not in (Phase.DATA, Phase.STEP, Phase.EVALUATE):
        return least
    if len(lately_s[Phase.STEP]) < NUM_FIRST:
        return FIRST_LIMIT_S
    # The median of steps, since a step in which another process was scoring says nothing about the
    # usual one. The mean of waits for data, since batches may come in bunches.
    usual = max(statistics.median(lately_s[Phase.STEP]), statistics.fmean(lately_s[Phase.DATA]))
    return max(least, SLOWER_THAN_USUAL * usual)
