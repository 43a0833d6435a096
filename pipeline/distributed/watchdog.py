"""Ends a run in which a process died, hangs or was cut off, and names that process.

Collective operations wait for all ranks, for hours or for ever. So each process tells the others
every two seconds what its main thread is doing and since when (heartbeats.py). A process that is
silent is lost; of the others, the one furthest behind holds up the rest (fault_policy.py). Every
process that sees this prints it and ends, and the launcher ends the run, or starts it again from
the last checkpoint.
"""

import contextlib
import faulthandler
import math
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import psutil

from pipeline.distributed.fault_policy import find_fault
from pipeline.distributed.heartbeats import HEARTBEAT_S, Heartbeats
from pipeline.distributed.phases import DOING, Phase, ProcessState, round_of
from pipeline.distributed.time_limits import FIRST_LIMIT_S, LOST_S, usual_limit
from pipeline.runtime.errors import ExplainedError
from pipeline.runtime.launcher_report import report_to_launcher
from pipeline.runtime.world import World

NUM_USUAL = 32  # durations that are kept of each phase
# What is known of the others is one heartbeat old, so a fault must last before the run is ended.
CONFIRM_S = 3 * HEARTBEAT_S
COMMIT_GRACE_S = 15.0  # for a checkpoint under way, before the process is ended
FAULT = 1  # exit code


class Watchdog:
    """Watches this process and, where there are several, the others; a context manager.

    The main thread names what it does with `phase`. If an exception leaves the watchdog's `with`
    block, the other processes are told, and end too.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.rank = world.rank
        # What the main thread does, replaced as a whole: steps done, phase, since when, limit.
        self._current = (0, Phase.DATA, time.monotonic(), FIRST_LIMIT_S)
        self._lately_s = {p: deque[float](maxlen=NUM_USUAL) for p in (Phase.DATA, Phase.STEP)}
        self._closed = threading.Event()
        self._suspect: tuple[int, int, Phase] | None = None  # rank, round and phase
        self._suspected = 0.0  # since when
        self._beats = Heartbeats(world, self._own_state)

    @contextlib.contextmanager
    def phase(self, phase: Phase, step: int, limit_s: float | None = None) -> Iterator[None]:
        """The main thread is in a phase inside the block.

        It counts as being in it until the next phase begins, so that it is always in one. Waiting
        for other processes has no limit, but what follows it has.

        Args:
            step: steps done so far.
            limit_s: how long it may be in it; by default what is usual for the phase.
        """
        if limit_s is None:
            limit_s = usual_limit(phase, self._lately_s)
        start = time.monotonic()
        self._current = (step, phase, start, limit_s)
        yield
        end = time.monotonic()
        if phase in self._lately_s:
            self._lately_s[phase].append(end - start)
        if limit_s == math.inf:
            self._current = (step, phase, end, FIRST_LIMIT_S)

    def await_commit(self) -> None:
        """An exception is about to end the process, once the checkpoint under way is complete.

        That checkpoint began in an earlier round, so no other process is blamed for waiting.
        """
        step, *_ = self._current
        limit_s = usual_limit(Phase.COMMIT, {})
        self._current = (step, Phase.COMMIT, time.monotonic(), limit_s)

    def __enter__(self) -> Self:
        self._beats.start()
        threading.Thread(target=self._judge_for_ever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._beats.close()
        if error is not None:
            self._end_with(error)
            return
        self._current = (0, Phase.DONE, time.monotonic(), math.inf)
        self._beats.send_last()

    # ------------------------------------------------------------- an error in this process

    def _end_with(self, error: BaseException) -> None:
        """Tell the others why this process ends, without a trace where it would hide the cause."""
        said = f"rank {self.rank} ended with {type(error).__name__}: {_message_of(error)}"
        if isinstance(error, ExplainedError):
            report_to_launcher(said)
        # torch raises RuntimeError in a collective operation when another process is gone.
        from_afar = isinstance(error, RuntimeError) and not isinstance(error, ExplainedError)
        lost = self._find_lost() if from_afar and self._beats.connected else None
        self._tell(lost or said)
        if isinstance(error, ExplainedError) or (
            from_afar and self._beats.verdict not in ("", said)
        ):
            sys.exit(FAULT)

    def _find_lost(self) -> str | None:
        """A process of this machine that no longer exists, and what it was doing.

        Looks for two seconds, in which the processes of other machines may find one of theirs and
        say so first.
        """
        self._beats.refresh()  # the latest, also of processes that died early
        for _ in range(20):
            for rank in self.world.ranks_of_this_machine:
                state = self._beats.states[rank]
                if rank != self.rank and state.phase != Phase.DONE and _is_gone(state.pid):
                    return (
                        f"rank {rank} (process {state.pid}) is gone, killed or ended without a "
                        f"message; in its last heartbeat it was {DOING[state.phase]} in step "
                        f"{state.step}"
                    )
            time.sleep(0.1)
        return None

    def _tell(self, verdict: str) -> None:
        """Print why this process ends, and tell the others; the verdict that came first counts."""
        self._beats.propose_verdict(verdict)
        first, said = self._beats.verdict, verdict
        if first and first != verdict:
            about_us = verdict.startswith(f"rank {self.rank} ")
            said = f"{verdict}; before it {first}" if about_us else f"ending, because {first}"
        with contextlib.suppress(
            OSError
        ):  # nobody reads it any more: the process ends all the same
            print(f"\nrank {self.rank}: {said}", file=sys.stderr, flush=True)

    # ------------------------------------------------------------------------------ judging

    def _own_state(self, number: int) -> ProcessState:
        step, phase, since, limit_s = self._current
        age_s = time.monotonic() - since
        number_of_round = round_of(phase, step)
        return ProcessState(
            number, number_of_round, phase, age_s, limit_s, os.getpid(), socket.gethostname()
        )

    def _judge_for_ever(self) -> None:
        beats = self._beats
        while not self._closed.wait(1.0):
            now = time.monotonic()
            beats.states[self.rank], beats.heard[self.rank] = self._own_state(0), now
            # How long the others have been silent is known up to the last exchange only.
            silent_s = [max(beats.exchanged - heard, 0.0) for heard in beats.heard]
            fault = find_fault(beats.states, silent_s)
            if beats.verdict:
                # A process that meets the same error at this moment is given time to say so itself.
                if not self._closed.wait(2.0):
                    self._end(f"ending, because {beats.verdict}")
            elif self._is_sure(fault, now):
                assert fault is not None
                self._end_for(*fault)
            elif beats.connected and os.getppid() != self.world.launcher_pid:
                self._end("the launcher is gone; ending")
            elif beats.connected and now - beats.exchanged > LOST_S:
                self._end(
                    "the launcher's store, on the machine of rank 0, has not answered for "
                    f"{now - beats.exchanged:.0f} s: that machine is gone or cut off {beats.error}"
                )

    def _is_sure(self, fault: tuple[int, str] | None, now: float) -> bool:
        """Whether the same process has been at fault for a while without going on."""
        if fault is None:
            self._suspect = None
            return False
        state = self._beats.states[fault[0]]
        suspect = (fault[0], state.step, state.phase)
        if suspect != self._suspect:
            self._suspect, self._suspected = suspect, now
        return now - self._suspected > CONFIRM_S

    def _end_for(self, culprit: int, why: str) -> None:
        state = self._beats.states[culprit]
        self._tell(f"rank {culprit} (process {state.pid} on {state.host}) {why}")
        own = self._own_state(0)
        if (own.step, own.phase) == (
            state.step,
            state.phase,
        ):  # this process may be the one that hangs
            faulthandler.dump_traceback()
        if culprit != self.rank and state.host == socket.gethostname():
            time.sleep(HEARTBEAT_S)  # it may still be able to print where it hangs
            _kill_sibling(state.pid, self.world.launcher_pid)
        self._end("ending")

    def _end(self, why: str) -> None:
        try:
            for thread in threading.enumerate():
                if thread.name == "commit":  # a checkpoint that is nearly written is worth a wait
                    thread.join(timeout=COMMIT_GRACE_S)
            # A loader worker that is stopped can only be killed. The process that cleans up
            # semaphores is no child of ours in this list, and stays.
            for worker in multiprocessing.active_children():
                worker.kill()
            print(f"rank {self.rank}: {why}", file=sys.stderr, flush=True)
            sys.stdout.flush()
        finally:  # also where nobody reads what is printed
            os._exit(FAULT)  # the main thread may hang where no exception reaches it


def _message_of(error: BaseException) -> str:
    """The first line of an error's message; of an error in a loader worker, its own message."""
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
    """Kill a process of this machine, if the same launcher started it.

    Host names repeat between containers, so the process id alone could be anyone's.
    """
    try:
        process = psutil.Process(pid)
        if process.ppid() == launcher_pid:
            process.kill()
    except psutil.Error:  # it has just ended, or this user has no right to end it
        return
