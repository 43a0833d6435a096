"""Ends a run in which a process died, hangs or was cut off: within a minute, and by name.

Collective operations wait for all ranks, for hours or for ever. So each process tells the
others every two seconds, through the launcher's key-value store, what its main thread is at and
since when. Who is silent is gone; of those who speak, the one furthest behind holds up the rest.
All that see it say so and end, and the launcher ends the run, or starts it again from the last
commit.
"""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from types import TracebackType

import psutil

from pipeline.distributed.fault_policy import (
    DOING,
    FIRST_LIMIT_S,
    LOST_S,
    UNHEARD,
    Phase,
    State,
    find_fault,
    usual_limit,
)
from pipeline.distributed.process_group import launcher_store
from pipeline.runtime.errors import ExplainedError
from pipeline.runtime.world import World

HEARTBEAT_S = 2.0
NUM_USUAL = 32  # of which the median counts: a step that waited for a score says nothing
SURE_S = 3 * HEARTBEAT_S  # what is known of the others is a heartbeat old: look again before ending
COMMIT_GRACE_S = 15.0  # for a commit under way, before the process is ended
FAULT = 1  # exit code


class Watchdog:
    """Watches this process and, where there are several, the others; a context manager.

    The main thread calls `beat` as it goes on. An exception that leaves the block is told to the
    other processes, which end too.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.rank = world.rank
        self._beat = (0, Phase.DATA, time.monotonic(), FIRST_LIMIT_S)
        self._lately_s = {p: deque[float](maxlen=NUM_USUAL) for p in (Phase.DATA, Phase.STEP)}
        self._closed = threading.Event()
        self._suspect: tuple[int, int, Phase] | None = None  # rank, step and phase
        self._suspected = 0.0  # since when
        self._verdict = ""  # another process's reason to end
        self._store_error = ""
        now = time.monotonic()
        self._exchanged = now
        # Until a process is heard of, it is as good as starting, and nobody's to kill.
        unheard = State(
            UNHEARD, 0, Phase.DATA, 0.0, FIRST_LIMIT_S, os.getpid(), "a machine unheard of"
        )
        self._states = [unheard] * world.world_size
        self._heard = [now] * world.world_size
        # A run that the launcher started anew must not read why the last one ended.
        self._prefix = f"capstream/{world.restart}"
        # Of its own: the group's store may be busy in the main thread.
        self._store = launcher_store(world) if world.world_size > 1 else None
        self._exchanger: threading.Thread | None = None

    def beat(self, step: int, phase: Phase, limit_s: float | None = None) -> None:
        """The main thread goes on to something else, or to its next part.

        Args:
            step: the round of the training loop, from 0: its commit and evaluation belong to it.
            limit_s: how long it may take; what is usual by default.
        """
        now = time.monotonic()
        _, before, since, _ = self._beat
        if before in self._lately_s:
            self._lately_s[before].append(now - since)
        if limit_s is None:
            limit_s = usual_limit(phase, self._lately_s)
        self._beat = (step, phase, now, limit_s)

    def await_commit(self) -> None:
        """The block is left by an exception, once the commit under way is whole."""
        self.beat(self._beat[0] - 1, Phase.COMMIT)

    def __enter__(self) -> "Watchdog":
        if self._store:  # at once, so that even who stops in the first step has said who it is
            self._store.set(f"{self._prefix}/{self.rank}", self._message(0))
            self._exchanger = threading.Thread(target=self._exchange_for_ever, daemon=True)
            self._exchanger.start()
        threading.Thread(target=self._judge_for_ever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        if error is not None:
            self._end_with(error)
            return
        self.beat(0, Phase.DONE)
        if self._store and self._exchanger:
            self._exchanger.join(timeout=2 * HEARTBEAT_S)  # its last word must not come after ours
            with contextlib.suppress(RuntimeError):  # the launcher's store may be gone already
                self._store.set(f"{self._prefix}/{self.rank}", self._message(sys.maxsize))

    def _end_with(self, error: BaseException) -> None:
        """Tell why the block is left. Leaves the trace out where it would only hide the cause."""
        said = f"rank {self.rank} ended with {type(error).__name__}: {_said_by(error)}"
        # torch calls by this name what a collective operation meets when another process is gone.
        from_afar = isinstance(error, RuntimeError) and not isinstance(error, ExplainedError)
        lost = self._find_lost() if from_afar and self._store else None
        self._tell(lost or said)
        if isinstance(error, ExplainedError) or (from_afar and self._verdict not in ("", said)):
            sys.exit(FAULT)

    def _find_lost(self) -> str | None:
        """A process of this machine that is no more, and what it was at.

        Looks for two seconds, in which those of other machines may find theirs and say so first.
        """
        self._ask_store(lambda: self._exchange(0))  # the latest, also of those who died young
        for _ in range(20):
            for rank in self.world.ranks_of_this_machine:
                state = self._states[rank]
                if rank != self.rank and state.phase != Phase.DONE and _is_gone(state.pid):
                    return (
                        f"rank {rank} (process {state.pid}) is gone, killed or without a word; "
                        f"when last heard of it was {DOING[state.phase]} in step {state.step}"
                    )
            time.sleep(0.1)
        return None

    # ------------------------------------------------------------------ between the processes

    def _exchange_for_ever(self) -> None:
        for number in count(1):
            try:
                self._exchange(number)
                self._exchanged = time.monotonic()
            except RuntimeError as error:  # the store's own kinds; silence of a while is judged
                self._store_error = str(error).splitlines()[0]
            if self._closed.wait(HEARTBEAT_S):
                return

    def _exchange(self, number: int) -> None:
        store = self._store
        assert store is not None
        if not self._closed.is_set():  # never after the last message
            store.set(f"{self._prefix}/{self.rank}", self._message(number))
        keys = [f"{self._prefix}/{rank}" for rank in range(self.world.world_size)]
        found = store.multi_get(keys) if store.check(keys) else []  # until all have begun
        for rank, message in enumerate(found):
            values = json.loads(message)
            state = State(**{**values, "phase": Phase(values["phase"])})
            if state != self._states[rank]:
                self._states[rank], self._heard[rank] = state, time.monotonic()
        if store.check([f"{self._prefix}/verdict"]):
            self._verdict = store.get(f"{self._prefix}/verdict").decode()

    def _message(self, number: int) -> str:
        return json.dumps(asdict(self._own_state(number)))

    def _own_state(self, number: int) -> State:
        step, phase, since, limit_s = self._beat
        age_s = time.monotonic() - since
        return State(number, step, phase, age_s, limit_s, os.getpid(), socket.gethostname())

    def _tell(self, verdict: str) -> None:
        """Say why this process ends, to people and to the others; the first one's word counts."""
        said = verdict
        if self._store:
            self._ask_store(lambda: self._settle(verdict))
            if self._verdict and self._verdict != verdict:
                about_us = verdict.startswith(f"rank {self.rank} ")
                said = f"{verdict}; before it" if about_us else "ending, because"
                said = f"{said} {self._verdict}"
        with contextlib.suppress(OSError):  # nobody is left to read it: the end must go on
            print(f"\nrank {self.rank}: {said}", file=sys.stderr, flush=True)

    def _settle(self, verdict: str) -> None:
        assert self._store is not None
        self._verdict = self._store.compare_set(f"{self._prefix}/verdict", "", verdict).decode()

    def _ask_store(self, ask: Callable[[], None]) -> None:
        """Ask for three seconds, in a thread: a store that is cut off may never answer."""

        def run() -> None:
            try:
                ask()
            except RuntimeError as error:  # what can be said without it is said all the same
                self._store_error = str(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(timeout=3.0)

    # ------------------------------------------------------------------------------ judging

    def _judge_for_ever(self) -> None:
        while not self._closed.wait(1.0):
            now = time.monotonic()
            self._states[self.rank], self._heard[self.rank] = self._own_state(0), now
            # What the others have been silent for is known up to the last exchange only.
            silent_s = [max(self._exchanged - heard, 0.0) for heard in self._heard]
            fault = find_fault(self._states, silent_s)
            if self._verdict:
                # Whoever meets the same error at this moment is to say so itself.
                if not self._closed.wait(2.0):
                    self._end(f"ending, because {self._verdict}")
            elif self._is_sure(fault, now):
                assert fault is not None
                self._end_for(*fault)
            elif self._store and os.getppid() != self.world.launcher_pid:
                self._end("the launcher is gone; ending")
            elif self._store and now - self._exchanged > LOST_S:
                self._end(
                    f"the processes' common store, on the machine of rank 0, has not answered for "
                    f"{now - self._exchanged:.0f} s: that machine is gone or cut off "
                    f"{self._store_error}"
                )

    def _is_sure(self, fault: tuple[int, str] | None, now: float) -> bool:
        """Whether the same process has been at fault for a while, and has not gone on since."""
        if fault is None:
            self._suspect = None
            return False
        state = self._states[fault[0]]
        suspect = (fault[0], state.step, state.phase)
        if suspect != self._suspect:
            self._suspect, self._suspected = suspect, now
        return now - self._suspected > SURE_S

    def _end_for(self, culprit: int, why: str) -> None:
        state = self._states[culprit]
        self._tell(f"rank {culprit} (process {state.pid} on {state.host}) {why}")
        if self._beat[:2] == (state.step, state.phase):  # it may be this one as well
            faulthandler.dump_traceback()
        if culprit != self.rank and state.host == socket.gethostname():
            time.sleep(HEARTBEAT_S)  # it may be alive enough to say where it is
            _kill_sibling(state.pid, self.world.launcher_pid)
        self._end("ending")

    def _end(self, why: str) -> None:
        try:
            for thread in threading.enumerate():
                if thread.name == "commit":  # nearly written: it would be a pity
                    thread.join(timeout=COMMIT_GRACE_S)
            # A loader that is stopped sees no other end. Who looks after semaphores lives on.
            for loader in multiprocessing.active_children():
                loader.kill()
            print(f"rank {self.rank}: {why}", file=sys.stderr, flush=True)
            sys.stdout.flush()
        finally:  # also where nobody is left to read what is printed
            os._exit(FAULT)  # the main thread may hang where no exception reaches it


def _said_by(error: BaseException) -> str:
    """The first line of an error's message; of one that a loader process met, its own."""
    lines = str(error).strip().splitlines() or [""]
    if lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2]
    return lines[0]


def _is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _kill_sibling(pid: int, launcher_pid: int) -> None:
    """End a process that no signal but this one reaches, if the same launcher started it.

    Host names repeat between containers, so the number alone could be anyone's.
    """
    try:
        process = psutil.Process(pid)
        if process.ppid() == launcher_pid:
            process.kill()
    except psutil.Error:  # ended in this moment, or nobody's to end
        return
