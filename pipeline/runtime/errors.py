"""Errors that a user can act on: one line on stderr and an exit code instead of a stack trace."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.runtime.launcher_report import report_to_launcher
from pipeline.runtime.world import World

USAGE = 2  # exit code: unusable input, nothing was done

ALONE = World()

# The launcher ends all processes as soon as one has ended. All processes find the same usage error,
# so local rank 0 prints it and the others wait this long before they print it themselves.
HEAD_START_S = 30.0


class ExplainedError(Exception):
    """An error with a cause outside the program: its message is complete and needs no trace."""


@contextmanager
def usage_errors(program: str, world: World = ALONE) -> Iterator[None]:
    """Turn a ValueError or OSError inside the block into one line on stderr and exit code 2.

    Use it around the reading of input only. Later errors are faults of the program and keep their
    stack trace.

    Args:
        program: name of the command, which begins the line.
        world: where this process stands; omit it while the world itself is being read.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if not world.is_local_main:
            time.sleep(HEAD_START_S)
        message = f"{program}: {' '.join(str(error).split())}"
        print(message, file=sys.stderr, flush=True)
        report_to_launcher(message)
        sys.exit(USAGE)
