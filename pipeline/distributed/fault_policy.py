"""What a process of a run may be at, for how long, and who of several is at fault: pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

LOST_S = 20.0  # silence after which a process counts as gone
LEAST_LIMIT_S = 30.0  # a step may always take so long,
SLOWER_THAN_USUAL = 10.0  # and so many times what it usually takes
FIRST_LIMIT_S = 600.0  # libraries tune themselves in the first steps, which tell nothing yet
NUM_FIRST = 2  # steps
FETCH_LIMIT_S = 900.0  # of waiting for data from afar: downloads have limits and attempts of theirs


class Phase(IntEnum):
    """What a main thread is at, in the order of one round of the training loop."""

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

# How long one round of it may take, in seconds; captioning longer where steps are slow.
LIMITS_S = {
    Phase.COMMIT: 900.0, Phase.EVALUATE: 120.0, Phase.GATHER: 120.0, Phase.SCORE: 1800.0,
    Phase.WAIT: float("inf"), Phase.DONE: float("inf"),
}  # fmt: skip


UNHEARD = -1  # number of a message that has not come


@dataclass(frozen=True)
class State:
    """What a process says of itself."""

    number: int  # of the message; UNHEARD before the first
    step: int
    phase: Phase
    age_s: float  # how long its main thread has been at this
    limit_s: float
    pid: int
    host: str


def find_fault(states: Sequence[State], silent_s: Sequence[float]) -> tuple[int, str] | None:
    """The rank that holds up a run, and why it is thought to; None where all is well.

    A rank that waits for others is ahead of them, or came to where they are before them: only the
    last to come to where the furthest behind are can be at fault.

    Args:
        states: the latest of each rank.
        silent_s: seconds since it came.
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
    """How long a main thread may be at something, in seconds.

    Args:
        lately_s: what the latest DATA and STEP took.
    """
    least = LIMITS_S.get(phase, LEAST_LIMIT_S)
    if phase not in (Phase.DATA, Phase.STEP, Phase.EVALUATE):
        return least
    if len(lately_s[Phase.STEP]) < NUM_FIRST:
        return FIRST_LIMIT_S
    # A step may have waited while another process scored: that one says nothing. Batches may come
    # in bunches, and all between two of them at once: their mean does.
    usual = max(statistics.median(lately_s[Phase.STEP]), statistics.fmean(lately_s[Phase.DATA]))
    return max(least, SLOWER_THAN_USUAL * usual)  # a machine that is slow is slow in all of them
