"""How often, and for how long, a remote store that fails is tried again."""

import errno
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TypeVar

from shards.messages import system_error

ATTEMPTS = 6
FIRST_PAUSE_S = 0.2  # doubled after each attempt: 6 s in total
LONGEST_PAUSE_S = 15.0
REPORT_AFTER_S = 5.0  # of failures that are retried with patience; reported once


class LastingError(OSError):
    """A failure that lasts: it has been retried already."""


# Errors that a retry does not change.
LASTING_ERRORS = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, MemoryError,
    LastingError,
)  # fmt: skip
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")


def persistently(path: Path, action: Callable[[], T], patience_s: float = 0.0) -> T:
    """Call `action`, which uses `path`. For a remote path, temporary failures are retried.

    Args:
        patience_s: retry for so long instead of ATTEMPTS times, and report it.
    Raises:
        OSError: it failed every time, or with an error that lasts.
    """
    if isinstance(path, Path):  # on this machine
        return action()
    start, reported = time.monotonic(), False
    for attempt in count(1):
        try:
            return action()
        except Exception as error:  # the library of each store has its own kinds
            if isinstance(error, LASTING_ERRORS) or getattr(error, "errno", None) in DISK_FULL:
                raise
            waited_s = time.monotonic() - start
            if waited_s > patience_s if patience_s else attempt == ATTEMPTS:
                raise OSError(
                    f"{path}: failed {attempt} times in {waited_s:.0f} s; last error: "
                    f"{system_error(error)}"
                ) from error
            if patience_s and not reported and waited_s > REPORT_AFTER_S:
                reported = True
                print(
                    f"{path}: failed {attempt} times ({system_error(error)}); retrying for up to "
                    f"{patience_s / 60:.0f} minutes",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S))
    raise AssertionError("an attempt returns or raises")
