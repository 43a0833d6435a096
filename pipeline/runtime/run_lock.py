"""Locks a run folder, since two runs in it would delete each other's checkpoints."""

import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import TextIO

from shards.atomic import NO_LOCKS

LOCK = ".lock"


def lock_run_dir(run_dir: Path) -> TextIO:
    """Lock a run folder against other runs, on this machine and on those that share the folder.

    The kernel holds the lock on the open file: it ends when the file is closed or the process ends,
    for whatever reason. Programs that the process starts do not inherit the file.

    Returns:
        The open file; keep it until the run ends.
    Raises:
        ValueError: another run uses the folder.
        OSError: the file cannot be opened.
    """
    path = run_dir / LOCK
    file = open(path, "a+")  # noqa: SIM115  # the caller keeps it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            print(
                f"run_dir: {run_dir}: its file system has no locks ({error.strerror}), so a second "
                "run in this folder would not be detected",
                file=sys.stderr,
            )
            return file
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        if isinstance(error, BlockingIOError):
            raise ValueError(
                f"run_dir: {run_dir}: in use by another run ({holder}); end that one first, or "
                "name another folder"
            ) from None
        raise
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
