"""Which process of a run is at fault: a pure function of what all of them say."""

from collections.abc import Sequence

from pipeline.distributed.phases import DOING, NO_MESSAGE, Phase, ProcessState
from pipeline.distributed.time_limits import LOST_S


def find_fault(states: Sequence[ProcessState], silent_s: Sequence[float]) -> tuple[int, str] | None:
    """The rank that holds up a run, and the reason; None where there is none.

    A rank that waits for others is either ahead of them, or came to the same phase before them. So
    only the rank that came last to the phase that is furthest behind can be at fault.

    Args:
        states: the latest state of each rank.
        silent_s: seconds since it arrived.
    """
    at_work = [(rank, state) for rank, state in enumerate(states) if state.phase != Phase.DONE]
    for rank, state in at_work:
        if silent_s[rank] > LOST_S and state.number != NO_MESSAGE:
            return rank, (
                f"has sent no heartbeat for {silent_s[rank]:.0f} s: it was killed or stopped, or "
                "its machine is cut off"
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
