"""Loader workers and their server go on when a stop signal is sent to the whole process group."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.repository import ROOT

from pipeline.runtime.preemption import STOP_SIGNALS

# Sends the signal to its own process group, of which the test is no member: right after the start
# of the server, which imports torch then, and again while a worker loads its second batch.
SEND_TO_THE_GROUP = """
import os, signal, sys, time
from multiprocessing import forkserver
from torch.utils.data import DataLoader, Dataset
from pipeline.data.worker_processes import loader_options, start_worker_server

class Slow(Dataset):
    def __getitem__(self, index):
        time.sleep(0.5)
        return index

if __name__ == "__main__":
    number = int(sys.argv[1])
    received = []
    signal.signal(number, lambda *_: received.append(number))
    start_worker_server()
    server = forkserver._forkserver._forkserver_pid
    os.killpg(0, number)
    batches = iter(DataLoader(Slow(), sampler=[5, 6], batch_size=None, **loader_options(1)))
    found = [next(batches)]
    os.killpg(0, number)
    found.append(next(batches))
    assert (len(received), found) == (2, [5, 6]), (received, found)
    assert server == forkserver._forkserver._forkserver_pid  # not another one
    assert os.waitpid(server, os.WNOHANG) == (0, 0)  # it runs
"""

# Asks to be stopped while the server starts: the signal waits until that is done.
SIGNAL_AT_THE_START = """
import signal, threading
from multiprocessing import forkserver
from pipeline.data.worker_processes import start_worker_server

received, started = [], []

def start_and_signal():
    whole()
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    started.append(list(received))

whole, forkserver.ensure_running = forkserver.ensure_running, start_and_signal
signal.signal(signal.SIGTERM, lambda *_: received.append(1))
start_worker_server()
assert (started, received) == ([[]], [1]), (started, received)
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
"""

START_TWICE = """
import atexit
from multiprocessing import forkserver
from pipeline.data.worker_processes import start_worker_server

start_worker_server()
first, handlers = forkserver._forkserver._forkserver_pid, atexit._ncallbacks()
start_worker_server()
assert forkserver._forkserver._forkserver_pid == first
assert atexit._ncallbacks() == handlers
"""


def run(code: str, folder: Path, *arguments: object) -> None:
    script = folder / "script.py"  # a file, as the workers import the main module
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        capture_output=True, text=True, cwd=folder, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_the_group_ends_neither_server_nor_worker(
    tmp_path: Path, number: signal.Signals
) -> None:
    run(SEND_TO_THE_GROUP, tmp_path, int(number))


def test_a_signal_during_the_start_of_the_server_is_not_lost(tmp_path: Path) -> None:
    run(SIGNAL_AT_THE_START, tmp_path)


def test_a_second_start_does_nothing(tmp_path: Path) -> None:
    run(START_TWICE, tmp_path)
