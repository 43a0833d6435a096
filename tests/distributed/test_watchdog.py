"""The watchdog: what it tells the other processes, and how it ends its own."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from support.repository import ONE_THREAD, ROOT
from support.waiting import wait_until

from pipeline.distributed.heartbeats import LAST_NUMBER, Heartbeats
from pipeline.distributed.phases import Phase, ProcessState
from pipeline.distributed.time_limits import FIRST_LIMIT_S, LEAST_LIMIT_S, usual_limit
from pipeline.distributed.watchdog import Watchdog
from pipeline.runtime.errors import ExplainedError
from pipeline.runtime.world import World

MakeWorld = Callable[..., World]


@pytest.fixture
def observer(make_world: MakeWorld) -> Iterator[Heartbeats]:
    """The heartbeats of rank 1, which does nothing but read those of rank 0."""
    beats = Heartbeats(
        make_world(1), lambda number: ProcessState(number, 0, Phase.DONE, 0, math.inf, 0, "there")
    )
    beats.start()
    yield beats
    beats.close()


def published(observer: Heartbeats, phase: Phase, in_round: int) -> ProcessState:
    """The state of rank 0, once it says that it is in a phase of a round."""
    wait_until(lambda: (observer.states[0].phase, observer.states[0].step) == (phase, in_round))
    return observer.states[0]


def test_the_phase_and_its_round_are_published(make_world: MakeWorld, observer: Heartbeats) -> None:
    """The checkpoint and the evaluation after step 5 belong to the round of step 5."""
    with Watchdog(make_world(0)) as watchdog:
        for phase, step in ((Phase.DATA, 5), (Phase.STEP, 5), (Phase.COMMIT, 6), (Phase.SCORE, 6)):
            with watchdog.phase(phase, step):
                state = published(observer, phase, 5)
            assert state.limit_s == usual_limit(phase, {Phase.DATA: [], Phase.STEP: []})
    assert published(observer, Phase.DONE, 0).number == LAST_NUMBER


def test_a_limit_that_is_given_replaces_the_usual_one(
    make_world: MakeWorld, observer: Heartbeats
) -> None:
    with Watchdog(make_world(0)) as watchdog, watchdog.phase(Phase.DATA, 0, limit_s=77.0):
        wait_until(lambda: observer.states[0].limit_s == 77.0)


def test_the_limit_follows_the_durations_of_the_steps_so_far(
    make_world: MakeWorld, observer: Heartbeats
) -> None:
    with Watchdog(make_world(0)) as watchdog:
        for step in range(3):
            with watchdog.phase(Phase.DATA, step):
                published(observer, Phase.DATA, step)
            with watchdog.phase(Phase.STEP, step):
                state = published(observer, Phase.STEP, step)
            assert state.limit_s == (FIRST_LIMIT_S if step < 2 else LEAST_LIMIT_S)


def test_waiting_has_no_limit_but_what_follows_has(
    make_world: MakeWorld, observer: Heartbeats
) -> None:
    with Watchdog(make_world(0)) as watchdog:
        with watchdog.phase(Phase.WAIT, 6):
            assert published(observer, Phase.WAIT, 5).limit_s == math.inf
        wait_until(lambda: observer.states[0].limit_s == FIRST_LIMIT_S)
        assert observer.states[0].phase == Phase.WAIT  # until the next phase begins


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase != Phase.DONE])
def test_a_checkpoint_under_way_counts_as_of_an_earlier_round_whatever_failed(
    make_world: MakeWorld, observer: Heartbeats, phase: Phase
) -> None:
    with Watchdog(make_world(0)) as watchdog:
        with suppress(KeyError), watchdog.phase(phase, 6):
            raise KeyError
        watchdog.await_commit()
        state = published(observer, Phase.COMMIT, 5)
        assert state.limit_s == usual_limit(Phase.COMMIT, {})


def test_the_end_of_a_process_is_told_to_the_others(
    make_world: MakeWorld, observer: Heartbeats
) -> None:
    with pytest.raises(KeyError), Watchdog(make_world(0)):
        raise KeyError("dog")
    wait_until(lambda: observer.verdict)
    assert observer.verdict == "rank 0 ended with KeyError: 'dog'"


def test_an_error_that_another_process_caused_ends_without_a_trace(
    make_world: MakeWorld, observer: Heartbeats, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a collective operation fails in which the other process has ended."""
    observer.propose_verdict("rank 1 ended with OSError: No space left on device")
    with pytest.raises(SystemExit) as ended, Watchdog(make_world(0)):
        raise RuntimeError("connection closed by peer")
    assert ended.value.code == 1
    said = "connection closed by peer; before it rank 1 ended with OSError: No space left on device"
    assert said in capsys.readouterr().err


def test_an_error_of_a_process_alone_keeps_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="cat"), Watchdog(World()):
        raise ValueError("cat")
    assert "rank 0: rank 0 ended with ValueError: cat" in capsys.readouterr().err


def test_an_explained_error_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, Watchdog(World()):
        raise ExplainedError("the disk is full")
    assert ended.value.code == 1
    printed = capsys.readouterr().err.split("\n")
    assert printed == ["", "rank 0: rank 0 ended with ExplainedError: the disk is full", ""]


HANG = """
import os, time
from pipeline.distributed import watchdog
from pipeline.distributed.phases import Phase
from pipeline.runtime.world import World

watchdog.CONFIRM_S = 0.1
with watchdog.Watchdog(World(launcher_pid=os.getppid())) as watching:
    with watching.phase(Phase.STEP, 7, limit_s=0.1):
        time.sleep(60)
"""


def test_a_process_that_hangs_is_ended_and_says_in_what() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANG], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True,
        timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "has been computing in step 7" in done.stderr
    assert "it hangs" in done.stderr
    assert 'File "<string>", line 10 in <module>' in done.stderr  # where its main thread is
