"""How a program of ours ends: one line and a code, for what a user can mend."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.launcher_report import report_to_launcher

USAGE = 2  # unusable input: nothing was done
STOPPED = 85  # asked to stop; everything is committed, start the same command again

# What asks a run to stop: the launcher passes them on, the training answers them.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

# The process that started this one: train.py imports this file first, while it surely lives.
LAUNCHER = os.getppid()

# Environment variables by which the launcher and its processes agree on a stop.
STOP_ASKED = "CAPSTREAM_STOP_ASKED"  # set for processes that start when it was already asked for
STOPPED_MARK = "CAPSTREAM_STOPPED_MARK"  # names a file that says that the processes stopped early

# The launcher ends all processes once one has ended. Local rank 0 speaks for the others, so they
# give it this long to begin and to finish its sentence.
HEAD_START_S = 30.0


class ExplainedError(Exception):
    """Ends a run for a cause outside of the program: the message says all, and no trace helps."""


def asked_before_the_start() -> bool:
    """Whether the launcher was asked to stop before it started this process.

    If not, nobody is stopping: what an earlier start may have marked is void.
    """
    if os.environ.get(STOP_ASKED):
        return True
    if mark := os.environ.get(STOPPED_MARK):
        Path(mark).unlink(missing_ok=True)
    return False


def answer_stop() -> int:
    """Tell the launcher that this process stops early, because it was asked to.

    Returns:
        The exit code to end with: 85, or 0 where the launcher has restarts to spare
        (`--max_restarts`), since it starts anew whatever ends with another one.
    """
    if mark := os.environ.get(STOPPED_MARK):
        with suppress(OSError):  # somebody tidied up: then 85 is not said, and no more is lost
            Path(mark).touch()
    return 0 if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) else STOPPED


@contextmanager
def usage_errors(program: str) -> Iterator[None]:
    """Turn a ValueError or OSError inside the block into one line on stderr and exit code 2.

    Meant for reading input only: past it, an error is a fault of the program and keeps its trace.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(HEAD_START_S)
        message = f"{program}: {' '.join(str(error).split())}"
        print(message, file=sys.stderr, flush=True)
        report_to_launcher(message)
        sys.exit(USAGE)
