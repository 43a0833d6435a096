"""Who holds up a run, and how long a phase may take: pure rules."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.distributed.fault_policy import find_fault
from pipeline.distributed.phases import NO_MESSAGE, Phase, ProcessState, round_of
from pipeline.distributed.time_limits import LOST_S, usual_limit


@given(st.integers(0, 100))
def test_a_round_is_a_step_with_its_checkpoint_and_evaluation(step: int) -> None:
    """In the order of the training loop, (round, phase) never goes back."""
    done = step + 1
    rounds = [(round_of(Phase.DATA, step), Phase.DATA), (round_of(Phase.STEP, step), Phase.STEP)]
    after = (Phase.COMMIT, Phase.EVALUATE, Phase.GATHER, Phase.SCORE, Phase.WAIT)
    rounds += [(round_of(phase, done), phase) for phase in after]
    rounds.append((round_of(Phase.DATA, done), Phase.DATA))
    assert rounds == sorted(rounds)
    assert len({number for number, _ in rounds}) == 2
    assert round_of(Phase.EVALUATE, 0) == 0  # an evaluation without a training


def state(step: int, phase: Phase, age_s: float, limit_s: float = 30.0) -> ProcessState:
    return ProcessState(1, step, phase, age_s, limit_s, 1, "here")


def test_who_is_behind_is_at_fault_not_who_waits() -> None:
    waits, hangs = state(8, Phase.STEP, 99), state(8, Phase.DATA, 99)
    fault = find_fault([waits, hangs], [0, 0])
    assert fault is not None
    assert fault[0] == 1
    assert "waiting for data in step 8 for 99 s" in fault[1]
    at_work = state(7, Phase.SCORE, 99, limit_s=1000)
    assert find_fault([waits, at_work], [0, 0]) is None
    assert find_fault([waits, state(8, Phase.DATA, 3)], [0, 0]) is None
    assert find_fault([waits, state(8, Phase.STEP, 3)], [0, 0]) is None  # it has only just come
    fault = find_fault([waits, state(8, Phase.STEP, 31)], [0, 0])
    assert fault is not None
    assert fault[0] == 1


def test_one_step_that_waited_for_long_does_not_blunt_the_limit() -> None:
    lately = {Phase.DATA: [0.1] * 9, Phase.STEP: [1.0] * 8 + [300.0]}  # rank 0 scored meanwhile
    assert usual_limit(Phase.STEP, lately) == usual_limit(Phase.DATA, lately) == 30
    assert usual_limit(Phase.EVALUATE, lately) == 120
    slow = {Phase.DATA: [2.0] * 9, Phase.STEP: [40.0] * 9}
    assert usual_limit(Phase.DATA, slow) == usual_limit(Phase.EVALUATE, slow) == 400
    bunches = {Phase.DATA: [40.0, 0, 0, 0] * 4, Phase.STEP: [1.0] * 16}
    assert usual_limit(Phase.DATA, bunches) == 100
    for phase in (Phase.STEP, Phase.EVALUATE):  # tuning, maybe; or a first evaluation
        assert usual_limit(phase, {Phase.DATA: [], Phase.STEP: [0.1]}) == 600


def test_steps_without_a_wait_for_data_have_a_limit_too() -> None:
    lately = {Phase.DATA: [], Phase.STEP: [20.0, 20.0]}
    assert usual_limit(Phase.STEP, lately) == usual_limit(Phase.EVALUATE, lately) == 200
    assert usual_limit(Phase.DATA, {Phase.DATA: [], Phase.STEP: [0.1, 0.1]}) == 30


def test_the_silent_are_lost_unless_they_are_done() -> None:
    fine, done = state(8, Phase.STEP, 1), state(0, Phase.DONE, 1, float("inf"))
    fault = find_fault([fine, fine], [LOST_S + 1, 0])
    assert fault is not None
    assert fault[0] == 0
    assert find_fault([fine, done], [0, LOST_S + 1]) is None
    assert find_fault([done, done], [99, 99]) is None
    unheard = ProcessState(NO_MESSAGE, 0, Phase.DATA, 0, 600, 1, "?")  # it may be starting yet
    assert find_fault([fine, unheard], [0, 500]) is None
    assert find_fault([fine, unheard], [0, 601]) is not None
