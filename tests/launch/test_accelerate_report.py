"""A wrong setting under plain `accelerate launch`: our message stands last, or in its report."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.repository import ONE_THREAD, ROOT

from pipeline.runtime.launcher_report import report_to_launcher

ACCELERATE = Path(sys.executable).parent / "accelerate"
WRONG = ("train.py", "--optim.lrr", "1")

needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")


def command(*options: str, wrong: tuple[str, ...] = WRONG) -> list[str]:
    return [sys.executable, str(ACCELERATE), "launch", *options, *wrong]


def launch(*options: str, wrong: tuple[str, ...] = WRONG) -> list[str]:
    done = subprocess.run(
        command(*options, wrong=wrong), capture_output=True, text=True, cwd=ROOT, env=ONE_THREAD,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1  # accelerate's own
    return done.stderr.splitlines()


@needs_proc
def test_of_one_process_it_is_repeated_below_the_trace() -> None:
    lines = launch("--num_processes", "1", "--num_machines", "1")
    assert "CalledProcessError" in lines[-2]
    assert "--optim.lrr" in lines[-1]
    assert lines.count(lines[-1]) == 2


@needs_proc
def test_on_a_terminal_too() -> None:
    terminal, stderr = pty.openpty()
    process = subprocess.Popen(
        command("--num_processes", "1"), cwd=ROOT, env=ONE_THREAD, stderr=stderr,
        start_new_session=True,
    )  # fmt: skip
    os.close(stderr)
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:  # Linux: nobody has the other end open any more
        pass
    os.close(terminal)
    process.wait(timeout=60)
    *_, before, last = shown.decode().splitlines()
    assert "CalledProcessError" in before
    assert "--optim.lrr" in last


def test_of_several_processes_it_stands_in_the_report() -> None:
    lines = launch("--config_file", "launch/cpu.yaml")
    report = "\n".join(lines[-9:])
    assert "Root Cause" in report
    assert "rank      : 0" in report
    assert "--optim.lrr" in lines[-2]  # below it is a ruler


@pytest.mark.parametrize("module", ["evaluate", "caption"])
def test_of_the_other_commands_too(module: str) -> None:
    wrong = ("-m", f"pipeline.{module}", "--wrong")
    lines = launch("--config_file", "launch/cpu.yaml", wrong=wrong)
    assert f"{module}: " in lines[-2]
    assert sum(line.startswith(f"{module}: ") for line in lines) == 1  # only local rank 0 prints it


def test_nothing_is_repeated_where_it_was_asked_to_be_quiet() -> None:
    lines = launch("--quiet", "--num_processes", "1", "--num_machines", "1")
    (line,) = [line for line in lines if "--optim.lrr" in line]
    assert line == lines[-1]


def test_a_report_that_cannot_be_written_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "missing" / "error.json"))
    report_to_launcher("train: wrong")
    assert not list(tmp_path.iterdir())


def test_another_parent_gets_no_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, *WRONG], capture_output=True, text=True, cwd=ROOT, env=ONE_THREAD,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert time.monotonic() - started < 20  # nobody keeps the pipe open
