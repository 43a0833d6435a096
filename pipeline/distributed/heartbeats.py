"""Heartbeats: each process tells the others what it is doing, through the launcher's store."""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import count

from pipeline.distributed.phases import NO_MESSAGE, Phase, ProcessState
from pipeline.distributed.process_group import launcher_store
from pipeline.distributed.time_limits import FIRST_LIMIT_S
from pipeline.runtime.world import World

HEARTBEAT_S = 2.0
ANSWER_S = 3.0  # how long the store may take to answer when a process ends
LAST_NUMBER = 1 << 62  # of the last message of a process


class Heartbeats:
    """The states of all processes of a run, exchanged every two seconds in a thread.

    A process alone has nobody to exchange with: `states` then holds its own state only.

    Args:
        own_state: makes this process's state, given the number of the message.
    """

    def __init__(self, world: World, own_state: Callable[[int], ProcessState]) -> None:
        self.rank = world.rank
        self.verdict = ""  # why the run ends, said by whichever process noticed first
        self.error = ""  # of the store, the latest
        self.exchanged = time.monotonic()  # when the store last answered
        # A process that has sent no message may still be starting, and must not be killed.
        unheard = ProcessState(
            NO_MESSAGE, 0, Phase.DATA, 0.0, FIRST_LIMIT_S, os.getpid(), "an unknown machine"
        )
        self.states = [unheard] * world.world_size
        self.heard = [self.exchanged] * world.world_size  # when each state arrived
        self._own_state = own_state
        # After a restart the processes must not read why the previous ones ended.
        self._prefix = f"capstream/{world.restart}"
        # A connection of its own: the main thread may be using the process group's.
        self._store = launcher_store(world) if world.world_size > 1 else None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    @property
    def connected(self) -> bool:
        """Whether there are other processes."""
        return self._store is not None

    def start(self) -> None:
        """Send the first heartbeat, and exchange from now on."""
        if self._store:  # at once, so that a process that stops in its first step is known
            self._store.set(self._key(self.rank), self._message(0))
            self._thread = threading.Thread(target=self._exchange_for_ever, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Send no more heartbeats."""
        self._closed.set()

    def send_last(self) -> None:
        """Send the last heartbeat of a process that ends well."""
        if self._store and self._thread:
            self._thread.join(timeout=2 * HEARTBEAT_S)  # an older message must not follow it
            try:
                self._store.set(self._key(self.rank), self._message(LAST_NUMBER))
            except RuntimeError as error:  # the launcher's store may be gone already
                self.error = str(error)

    def refresh(self) -> None:
        """Read the latest states now. Returns without them if the store does not answer."""
        if self._store:
            self._ask(lambda: self._exchange(0))

    def propose_verdict(self, verdict: str) -> None:
        """Tell the others why the run ends, unless another process already has.

        Afterwards `verdict` is the one that came first.
        """

        def propose() -> None:
            assert self._store is not None
            self.verdict = self._store.compare_set(self._verdict_key, "", verdict).decode()

        if self._store:
            self._ask(propose)

    # ------------------------------------------------------------------------------- the store

    def _exchange_for_ever(self) -> None:
        for number in count(1):
            try:
                self._exchange(number)
                self.exchanged = time.monotonic()
            except RuntimeError as error:  # the watchdog judges a store that stays silent
                self.error = str(error).splitlines()[0]
            if self._closed.wait(HEARTBEAT_S):
                return

    def _exchange(self, number: int) -> None:
        store = self._store
        assert store is not None
        if not self._closed.is_set():  # never after the last message
            store.set(self._key(self.rank), self._message(number))
        keys = [self._key(rank) for rank in range(len(self.states))]
        found = store.multi_get(keys) if store.check(keys) else []  # none until all have begun
        for rank, message in enumerate(found):
            values = json.loads(message)
            state = ProcessState(**{**values, "phase": Phase(values["phase"])})
            if state != self.states[rank]:
                self.states[rank], self.heard[rank] = state, time.monotonic()
        if store.check([self._verdict_key]):
            self.verdict = store.get(self._verdict_key).decode()

    def _ask(self, ask: Callable[[], None]) -> None:
        """Ask the store in a thread, since a store that is cut off may never answer."""

        def run() -> None:
            try:
                ask()
            except RuntimeError as error:  # the process ends all the same
                self.error = str(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(timeout=ANSWER_S)

    def _message(self, number: int) -> str:
        return json.dumps(asdict(self._own_state(number)))

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"

    @property
    def _verdict_key(self) -> str:
        return f"{self._prefix}/verdict"
