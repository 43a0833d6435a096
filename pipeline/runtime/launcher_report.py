"""Show an error message at the end of what `accelerate launch` prints about the failure.

When a process fails, accelerate prints a traceback of its own below the process's message: some 15
lines for one process, some 35 for several. Nothing that the process itself prints can come later.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

LAUNCHER_LIMIT_S = 30  # the launcher has nothing to do any more but to print and end

# Waits for a process to end, then prints. A script of its own, since a forked copy of this process
# would keep its memory and its threads' locks. The command line of a process is empty as soon as it
# begins to end, some milliseconds before its shell is told and shows the next prompt.
REPEAT = f"""
import sys, time
process_id, message = sys.argv[1:]
limit = time.monotonic() + {LAUNCHER_LIMIT_S}
while time.monotonic() < limit:
    try:
        with open(f"/proc/{{process_id}}/cmdline", "rb") as file:
            lives = file.read(1)
    except OSError:
        lives = b""
    if not lives:
        sys.stderr.write(message + "\\n")
        break
    time.sleep(0.002)
"""


def report_to_launcher(message: str) -> None:
    """Make the launcher's report of this process's failure end with its message.

    Several processes: torch's launcher reads the message from a file and shows it in its report, in
    the place where it otherwise explains how to enable tracebacks. One process: a small process
    that outlives this one repeats the message once accelerate has ended. Does nothing under another
    parent, such as `capstream train`, which prints nothing below the message.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:
        _write_error_file(Path(error_file), message)
    elif _prints_a_traceback(_parent_command()):
        _repeat_after(os.getppid(), message)


def _write_error_file(path: Path, message: str) -> None:
    """The form that torch.distributed.elastic.multiprocessing.errors.ProcessFailure reads."""
    try:
        path.write_text(json.dumps({"message": message, "timestamp": int(time.time())}))
    except OSError:  # the message has been printed already
        path.unlink(missing_ok=True)


def _parent_command() -> list[str]:
    try:  # Linux has it; elsewhere the message is not repeated
        return (
            Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
        )
    except OSError:
        return []


def _prints_a_traceback(command: list[str]) -> bool:
    """Whether a command line is that of `accelerate launch`, without its `--quiet`."""
    names = [Path(part).name for part in command[:4]]
    launches = ("accelerate" in names and "launch" in names) or "accelerate-launch" in names
    return launches and not {"--quiet", "-q"} & set(command)


def _repeat_after(process_id: int, message: str) -> None:
    with suppress(OSError):  # this machine starts no more processes
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", REPEAT, str(process_id), message],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C and a closing terminal are not meant for it
        )
