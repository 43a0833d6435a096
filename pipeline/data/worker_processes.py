"""Loader workers: where they are forked from, which signals they ignore, how they end.

A plain fork of a training process copies locks that its other threads (gloo, OpenMP, tqdm) may hold
at that moment, and the child then waits for ever. This was seen with two evaluating processes. So
loader workers are forked from multiprocessing's fork server, a process that has no such threads. It
imports torch once, so that its children start at once.

Signals: a scheduler or launcher may send a stop signal to the whole process group. The training
process answers it; the fork server and the loader workers must go on until the training process
ends. If it is killed, the workers end because they watch it, and the server ends after them.
"""

import atexit
import multiprocessing
import os
import signal
import threading
from functools import cache
from multiprocessing import connection, forkserver, resource_tracker
from typing import Any

import cv2

from pipeline.runtime.preemption import STOP_SIGNALS

CONTEXT = multiprocessing.get_context("forkserver")


def start_worker_server() -> None:
    """Start the process that loader workers are forked from, if it does not run yet.

    The loaders call this themselves. Call it earlier to let the server import torch while the
    caller does something else.

    The stop signals are blocked while the server starts. It inherits the blocked mask, and its
    children do too, so that none of them is ended by a signal to the process group, from their
    first instruction on. A signal that comes to this process meanwhile is delivered afterwards.
    """
    CONTEXT.set_forkserver_preload(["pipeline.data.loader"])
    _kill_loader_workers_at_exit()
    # Before the block, because a start of the resource tracker ends with SIGINT and SIGTERM
    # unblocked, and the fork server would start the tracker if it did not run.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@cache
def _kill_loader_workers_at_exit() -> None:
    """Let the end of this process, for whatever reason, end its loader workers too.

    multiprocessing would send them SIGTERM, which they ignore, and then wait for ever.
    """

    @atexit.register
    def kill_loader_workers() -> None:
        for process in multiprocessing.active_children():
            process.kill()


def loader_options(num_workers: int) -> dict[str, Any]:
    """Prepare this process for a `DataLoader` with so many workers.

    Returns:
        The arguments of the `DataLoader` that concern its workers.
    """
    if num_workers == 0:
        _use_one_thread()
        return {}
    start_worker_server()
    return {
        "num_workers": num_workers,
        "multiprocessing_context": CONTEXT,
        "worker_init_fn": _start_worker,
    }


def _start_worker(worker: int) -> None:
    """Prepare a loader worker; torch calls it there, before the first sample is read.

    The worker ends with the training process and ignores the stop signals. If the training process
    is killed, nobody is left to end its workers, so each of them watches the pipe that is closed
    by the death of the training process.
    """
    _use_one_thread()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    threading.Thread(target=_end_with, args=(trainer.sentinel,), daemon=True).start()


def _use_one_thread() -> None:
    """Decode and resize in one thread: the loader workers share the cores."""
    cv2.setNumThreads(1)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
