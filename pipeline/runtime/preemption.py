"""Preemption: how a run is asked to stop, and how it answers.

The launcher passes SIGTERM, SIGUSR1 and Ctrl-C on to its processes. A training process finishes its
step, commits a checkpoint and ends with exit code 85, on which a scheduler can requeue the job.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.runtime.world import World

STOPPED = 85  # exit code: asked to stop, all is committed, the same command continues the run

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

# Environment variables through which the launcher and its processes agree on a stop.
STOP_ASKED = "CAPSTREAM_STOP_ASKED"  # set for processes that start after the stop request came
STOPPED_MARK = "CAPSTREAM_STOPPED_MARK"  # path of a file that exists once the processes stopped


def asked_before_the_start() -> bool:
    """Whether the launcher was asked to stop before it started this process.

    If it was not, a mark that an earlier start of the processes left behind is removed.
    """
    if os.environ.get(STOP_ASKED):
        return True
    if mark := os.environ.get(STOPPED_MARK):
        Path(mark).unlink(missing_ok=True)
    return False


def answer_stop(world: World) -> int:
    """Tell the launcher that this process ends early because it was asked to stop.

    Returns:
        The exit code to end with. It is 85, or 0 where the launcher may restart processes
        (`--max_restarts`), because it restarts every process that ends with another code.
    """
    if mark := os.environ.get(STOPPED_MARK):
        with suppress(OSError):  # the folder is gone: the launcher then answers 0 instead of 85
            Path(mark).touch()
    return 0 if world.max_restarts else STOPPED


class StopRequest:
    """Remembers that a signal asked the process to stop; the step under way ends first.

    Installs the signal handlers when it is made.
    """

    def __init__(self) -> None:
        self.requested = False
        self._leave: Callable[[], None] | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.requested = True
        if self._leave:
            self._leave()

    @contextmanager
    def at_once(self, leave: Callable[[], None]) -> Iterator[None]:
        """Inside the block a stop request calls `leave` immediately, from the signal handler.

        For an evaluation, which trains nothing and may take longer than a scheduler waits.

        Args:
            leave: ends the process. It is called at the start of the block if a stop was requested
                before it.
        """
        self._leave = leave
        if self.requested:
            leave()
        try:
            yield
        finally:
            self._leave = None
