"""`accelerate launch`, but the exit code is the program's own and no launcher trace follows it.

    python -m launch --config_file launch/cpu.yaml train.py --config configs/demo.yaml ...

Takes the same arguments. A scheduler can requeue on exit code 85 (asked to stop, all committed),
and a mistyped setting ends with its one line and exit code 2.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from pipeline.runtime.preemption import STOP_ASKED, STOP_SIGNALS, STOPPED, STOPPED_MARK


def main() -> int:
    """Launch. Returns the exit code of the process that failed first; 0 if none did."""
    # Left to itself the agent dies of these signals, and with it what the processes answer.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    for number in STOP_SIGNALS:
        signal.signal(number, _pass_on)
    script = next((n for n, text in enumerate(sys.argv[1:], 1) if text.endswith(".py")), 0)
    if "--quiet" in sys.argv[:script]:  # with it accelerate answers every failure with 1
        sys.argv.remove("--quiet")
    with tempfile.TemporaryDirectory(prefix="capstream-") as folder:
        mark = Path(folder) / "stopped"
        os.environ[STOPPED_MARK] = str(mark)
        # With restarts to spare the processes answer a stop with 0, lest they be started again.
        code = _launch()
        # One that stopped ends the others, where no restart is left to say so itself.
        return STOPPED if mark.exists() and code in (0, 1) else code


def _launch() -> int:
    # Imported once signals are passed on: torch takes its seconds.
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The agent's own report of a failure repeats, at length, what the program said in one line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch.main()
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        return _code_of(f"rank {rank} (process {first.pid})", int(first.exitcode))
    except subprocess.CalledProcessError as error:
        return _code_of("the process", error.returncode)
    return 0


def _code_of(process: str, exit_code: int) -> int:
    """The exit code for that of a process that failed, negative where a signal ended it."""
    if exit_code > 0:
        return exit_code
    if os.environ.get(STOP_ASKED) and -exit_code in STOP_SIGNALS:
        print(
            "launch: asked to stop before there was anything to commit; the same command starts "
            "again",
            file=sys.stderr,
        )
        return STOPPED
    name = signal.Signals(-exit_code).name  # it could not say so itself
    print(f"launch: {process} was ended by {name}", file=sys.stderr)
    return 128 - exit_code


def _pass_on(number: int, frame: object) -> None:
    """Let the processes decide: they finish their step, commit, and end.

    SIGTERM for all kinds: while Python itself starts, SIGINT makes a fault of it.
    """
    os.environ[STOP_ASKED] = "1"  # for those that the agent may start from now on
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # ended in this moment
            child.terminate()


if __name__ == "__main__":
    sys.exit(main())
