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

import psutil
from accelerate.commands import launch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from pipeline.exits import STOP_SIGNALS, STOPPED

_stop_passed_on: list[int] = []


def main() -> int:
    """Launch. Returns the exit code of the process that failed first; 0 if none did."""
    # Left to itself the agent dies of these signals, and with it what the processes answer.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    for number in STOP_SIGNALS:
        signal.signal(number, _pass_on)
    # The agent's own report of a failure repeats, at length, what the program said in one line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch.main()
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode < 0:  # it could not say so itself
            name = signal.Signals(-first.exitcode).name
            print(f"launch: rank {rank} (process {first.pid}) was ended by {name}", file=sys.stderr)
        return int(first.exitcode) if first.exitcode > 0 else 128 - int(first.exitcode)
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    # With restarts to spare the processes answer a stop with 0, lest they be started again.
    return STOPPED if _stop_passed_on else 0


def _pass_on(number: int, frame: object) -> None:
    """Let the processes decide: they finish their step, commit, and end."""
    _stop_passed_on.append(number)
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # ended in this moment
            child.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())
