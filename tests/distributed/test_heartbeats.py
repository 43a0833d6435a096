"""Heartbeats over a real store on loopback, between two objects of this process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from support.waiting import wait_until

from pipeline.distributed.heartbeats import LAST_NUMBER, Heartbeats
from pipeline.distributed.phases import NO_MESSAGE, Phase, ProcessState
from pipeline.runtime.world import World

MakeWorld = Callable[..., World]


def make_beats(world: World, step: int = 0, phase: Phase = Phase.DATA) -> Heartbeats:
    """The heartbeats of a process that stays in one phase."""

    def own_state(number: int) -> ProcessState:
        return ProcessState(number, step, phase, 0.5, 30.0, os.getpid(), "here")

    return Heartbeats(world, own_state)


@contextmanager
def beating(*all_beats: Heartbeats) -> Iterator[None]:
    for beats in all_beats:
        beats.start()
    try:
        yield
    finally:
        for beats in all_beats:
            beats.close()


def test_every_process_learns_the_states_of_all(make_world: MakeWorld) -> None:
    first = make_beats(make_world(0), 7, Phase.STEP)
    second = make_beats(make_world(1), 8, Phase.EVALUATE)
    assert first.connected
    assert second.connected
    with beating(first, second):
        for beats in (first, second):
            wait_until(lambda beats=beats: min(s.number for s in beats.states) > NO_MESSAGE)
            seen = [(state.step, state.phase, state.limit_s, state.pid) for state in beats.states]
            assert seen == [
                (7, Phase.STEP, 30.0, os.getpid()),
                (8, Phase.EVALUATE, 30.0, os.getpid()),
            ]
        number, heard = second.states[0].number, second.heard[0]
        wait_until(lambda: second.states[0].number > number and second.heard[0] > heard)


def test_a_process_that_has_sent_nothing_yet_is_told_from_a_silent_one(
    make_world: MakeWorld,
) -> None:
    first, second = (make_beats(make_world(rank, world_size=3)) for rank in range(2))
    with beating(first, second):
        exchanged = first.exchanged
        wait_until(lambda: first.exchanged > exchanged)
        assert first.states[2].number == NO_MESSAGE
        with beating(make_beats(make_world(2, world_size=3))):
            wait_until(lambda: first.states[2].number > NO_MESSAGE)


def test_the_verdict_that_came_first_counts_for_all(make_world: MakeWorld) -> None:
    first, second = make_beats(make_world(0)), make_beats(make_world(1))
    with beating(first, second):
        second.propose_verdict("rank 1 ended")
        first.propose_verdict("rank 0 ended")
        assert first.verdict == second.verdict == "rank 1 ended"


def test_a_verdict_reaches_the_others_by_itself(make_world: MakeWorld) -> None:
    first, second = make_beats(make_world(0)), make_beats(make_world(1))
    with beating(first, second):
        first.propose_verdict("rank 0 ended")
        wait_until(lambda: second.verdict == "rank 0 ended")


def test_a_restarted_run_does_not_read_why_the_earlier_one_ended(make_world: MakeWorld) -> None:
    make_beats(make_world(0)).propose_verdict("rank 0 ended")
    again = make_beats(make_world(0, restart=1))
    again.propose_verdict("rank 0 ended again")
    assert again.verdict == "rank 0 ended again"


def test_no_message_follows_the_last_one(make_world: MakeWorld) -> None:
    ended, other = make_beats(make_world(0), phase=Phase.DONE), make_beats(make_world(1))
    with beating(ended, other):
        wait_until(lambda: other.states[0].number > 0)
        ended.close()
        ended.send_last()
        ended.refresh()  # reads the others, and must not send a message any more
        other.refresh()
        assert other.states[0].number == LAST_NUMBER
        assert other.states[0].phase == Phase.DONE


def test_a_process_alone_has_nobody_to_exchange_with() -> None:
    alone = make_beats(World())
    assert not alone.connected
    alone.start()
    alone.propose_verdict("nobody hears this")
    alone.close()
    alone.send_last()
    assert alone.verdict == ""
    assert len(alone.states) == 1
