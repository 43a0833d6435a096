"""Stop requests: how a process notices them, and what it answers."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.runtime.preemption import (
    STOP_ASKED,
    STOP_SIGNALS,
    STOPPED,
    STOPPED_MARK,
    StopRequest,
    answer_stop,
    asked_before_the_start,
)
from pipeline.runtime.world import World


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield StopRequest()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_request_before_the_start_is_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STOP_ASKED, raising=False)
    monkeypatch.delenv(STOPPED_MARK, raising=False)
    assert not asked_before_the_start()
    mark = tmp_path / "stopped"
    mark.touch()
    monkeypatch.setenv(STOPPED_MARK, str(mark))
    monkeypatch.setenv(STOP_ASKED, "1")
    assert asked_before_the_start()
    assert mark.exists()


def test_the_mark_of_an_earlier_start_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "stopped"
    monkeypatch.delenv(STOP_ASKED, raising=False)
    monkeypatch.setenv(STOPPED_MARK, str(mark))
    assert not asked_before_the_start()
    mark.touch()
    assert not asked_before_the_start()
    assert not mark.exists()


def test_a_launcher_that_restarts_processes_is_answered_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "stopped"
    monkeypatch.setenv(STOPPED_MARK, str(mark))
    assert answer_stop(World(max_restarts=3)) == 0
    assert mark.exists()  # so that the launcher ends with 85 all the same


def test_any_other_launcher_is_answered_85(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STOPPED_MARK, raising=False)
    assert answer_stop(World()) == STOPPED == 85
    monkeypatch.setenv(STOPPED_MARK, str(tmp_path / "gone" / "stopped"))
    assert answer_stop(World()) == STOPPED


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_is_remembered(stop: StopRequest, number: signal.Signals) -> None:
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested


def test_inside_the_block_a_stop_signal_is_answered_at_once(stop: StopRequest) -> None:
    left = []
    with stop.at_once(lambda: left.append("in the block")):
        assert not left
        os.kill(os.getpid(), signal.SIGTERM)
        assert left == ["in the block"]
    os.kill(os.getpid(), signal.SIGTERM)
    assert len(left) == 1
    with stop.at_once(lambda: left.append("at its start")):  # was asked before it
        assert left == ["in the block", "at its start"]
