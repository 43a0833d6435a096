"""How long each phase of a run may take before it counts as hanging: pure functions."""

import statistics
from collections.abc import Mapping, Sequence

from pipeline.distributed.phases import Phase

LOST_S = 20.0  # silence after which a process counts as lost
LEAST_LIMIT_S = 30.0  # the least limit of a step
SLOWER_THAN_USUAL = 10.0  # a step may take this many times as long as it usually does
FIRST_LIMIT_S = 600.0  # limit of the first steps, in which libraries tune themselves
NUM_FIRST = 2  # number of steps that count as first
FETCH_LIMIT_S = 900.0  # for shards behind URLs: downloads have time limits and retries of their own

# How long each of these may take, in seconds. If training steps are slow, EVALUATE, which captions
# one batch, may take longer: see usual_limit.
LIMITS_S = {
    Phase.COMMIT: 900.0, Phase.EVALUATE: 120.0, Phase.GATHER: 120.0, Phase.SCORE: 1800.0,
    Phase.WAIT: float("inf"), Phase.DONE: float("inf"),
}  # fmt: skip


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
    # usual one. The mean of waits for data, since batches may come in bunches; 0 before the first.
    waits_s = lately_s[Phase.DATA] or [0.0]
    usual = max(statistics.median(lately_s[Phase.STEP]), statistics.fmean(waits_s))
    return max(least, SLOWER_THAN_USUAL * usual)
