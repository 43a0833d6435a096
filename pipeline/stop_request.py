"""What a signal asks of a training run."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.exits import STOP_SIGNALS, answer_stop
from pipeline.monitor import Monitor


class StopRequest:
    """Remembers that a signal asked to stop; the step under way ends first."""

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
    def at_once(self, monitor: Monitor, step: int) -> Iterator[None]:
        """Inside the block, in which nothing is trained, a signal ends the process there and then.

        An evaluation may take longer than a scheduler waits. Its step is committed, and the next
        start makes up for it.
        """

        def leave() -> None:
            monitor.say(
                f"asked to stop: step {step:,} is committed, and the same command goes on with its "
                "evaluation"
            )
            os._exit(answer_stop())  # others may wait for this process, which has no more to say

        monitor.flush()
        self._leave = leave
        if self.requested:
            leave()
        try:
            yield
        finally:
            self._leave = None
