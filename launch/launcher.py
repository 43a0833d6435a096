"""Start training processes, pass stop requests on to them, and return their exit code.

`accelerate launch` ends with code 1 whatever the code of its processes was, prints a traceback of
its own below their error message, and dies of the signals that ask a run to stop. `supervise` runs
it without these three: for `python -m launch` and for `capstream`.
"""

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import psutil

from pipeline.runtime.errors import USAGE
from pipeline.runtime.preemption import STOP_ASKED, STOP_SIGNALS, STOPPED, STOPPED_MARK


def supervise(start: Callable[[], None]) -> int:
    """Start processes and wait for them; a stop request that arrives meanwhile is passed on.

    Args:
        start: starts the processes and returns when all of them have ended. torch and accelerate
            are imported in it, not before: a stop request is answered during the import too.

    Returns:
        The exit code of the process that failed first, 0 if none failed, 85 if they stopped because
        they were asked to, 2 if the launcher cannot use its arguments.
    """
    # By default torch's launcher ends on SIGTERM and SIGINT, before its processes can commit.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    for number in STOP_SIGNALS:
        signal.signal(number, _pass_on)
    with tempfile.TemporaryDirectory(prefix="capstream-") as folder:
        mark = Path(folder) / "stopped"
        os.environ[STOPPED_MARK] = str(mark)
        code = _exit_code_of(start)
        # With --max_restarts, processes answer a stop request with 0 so that they are not started
        # again. Without, the first process that stops makes the launcher end the others.
        return STOPPED if mark.exists() and code in (0, 1) else code


def accelerate_launch(arguments: list[str]) -> None:
    """`accelerate launch` in this process.

    Raises:
        ValueError: accelerate cannot use the arguments.
        ChildFailedError, CalledProcessError: a process failed.
    """
    from accelerate.commands.launch import launch_command

    options = launcher_parser().parse_args(arguments)
    options.quiet = False  # with --quiet, accelerate answers every failure with code 1
    # The report of torch's launcher repeats at length what the process said in one line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    launch_command(options)


def launcher_parser() -> argparse.ArgumentParser:
    """The parser of `accelerate launch`; it raises ValueError where it would exit."""
    from accelerate.commands.launch import launch_command_parser

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; `accelerate launch --help` lists the options")

    parser: argparse.ArgumentParser = launch_command_parser()
    parser.error = refuse  # type: ignore[method-assign]
    return parser


def _exit_code_of(start: Callable[[], None]) -> int:
    try:
        start()
    except subprocess.CalledProcessError as error:
        return _code_of("the process", error.returncode)
    except (ValueError, FileNotFoundError) as error:
        print(f"launch: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    except Exception as error:
        # Imported here: torch takes seconds, and only a launcher that has imported it raises this.
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        if not isinstance(error, ChildFailedError):
            raise
        rank, first = error.get_first_failure()
        return _code_of(f"rank {rank} (process {first.pid})", int(first.exitcode))
    return 0


def _code_of(process: str, exit_code: int) -> int:
    """The launcher's exit code for that of a process, which is negative if a signal ended it."""
    if exit_code > 0:
        return exit_code
    if os.environ.get(STOP_ASKED) and -exit_code in STOP_SIGNALS:
        print(
            "launch: asked to stop before there was anything to commit; start the same command "
            "again to continue",
            file=sys.stderr,
        )
        return STOPPED
    name = signal.Signals(-exit_code).name
    print(f"launch: {process} was ended by {name}", file=sys.stderr)
    return 128 - exit_code


def _pass_on(number: int, frame: object) -> None:
    """Ask the processes to stop: they finish their step, commit, and end.

    All stop signals are passed on as SIGTERM: SIGINT makes Python fail with a traceback if it
    arrives while the interpreter starts.
    """
    os.environ[STOP_ASKED] = "1"  # for processes that are started after this moment
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            child.terminate()
