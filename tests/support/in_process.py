"""Commands run in the test's own process, which spares each the seconds of a start."""

import io
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from tempfile import TemporaryFile
from unittest.mock import patch

import torch
from support.training import tiny_settings

from pipeline.config.parser import parse_config
from pipeline.runtime.preemption import STOP_SIGNALS
from pipeline.runtime.world import World
from pipeline.training.inputs import Run, prepare
from pipeline.training.trainer import fit


def run_here(main: Callable[[], int], *arguments: object) -> int:
    """The exit code of a command; what it prints goes where the test's own output goes."""
    with as_it_was(), patch.object(sys, "argv", [main.__module__, *map(str, arguments)]):
        try:
            return main()
        except SystemExit as end:
            return int(end.code or 0)


def captured_here(
    main: Callable[[], int], *arguments: object, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it prints, as `subprocess.run` would."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with TemporaryFile("w+") as file, redirect_stdout(out), redirect_stderr(err):
        file.write(stdin)
        file.seek(0)
        with patch("sys.stdin", file):
            code = run_here(main, *arguments)
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess([], code, *texts)


def prepare_here(*settings: object) -> Run:
    """The run of a tiny model whose inputs are read and checked. Raises as `prepare`."""
    return prepare(parse_config(tiny_settings(*settings)), World())


def train_here(*settings: object) -> None:
    """Train a tiny model to the end."""
    with as_it_was():
        assert fit(prepare_here(*settings)) == 0


@contextmanager
def as_it_was() -> Iterator[None]:
    """Undo what a command changes in its process for good."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        torch.set_grad_enabled(True)
        for number, handler in handlers.items():
            signal.signal(number, handler)
