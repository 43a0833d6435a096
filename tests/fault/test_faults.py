"""Whatever goes wrong in one process of a run, all end within a minute, and it is named."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes
from support.training import epochs, train_command

from pipeline.runtime.preemption import STOPPED

# Fault, the rank that has it, loader processes, and what the output must tell of it.
FAST = [
    ("killed", 1, 0, ["rank 1 (process", "is gone, killed", "SIGKILL"]),
    ("stopped", 1, 0, ["rank 1", "has sent no heartbeat"]),
    ("raises", 1, 0, ["rank 1 ended with RuntimeError: a wheel came off"]),
]
SLOW = [
    ("killed", 0, 2, ["rank 0", "SIGKILL"]),
    ("stopped", 0, 2, ["rank 0", "has sent no heartbeat"]),
    ("segfault", 0, 0, ["rank 0", "SIGSEGV"]),
    ("exits", 1, 0, ["rank"]),
    ("leaves", 1, 0, ["rank 1 ended with SystemExit: 3"]),
    ("hangs in a step", 0, 0, ["rank", "computing in step 2", "it hangs"]),
    ("out of memory", 1, 0, ["rank 1 ended with OutOfMemoryError: CUDA out of memory"]),
    ("host out of memory", 0, 2, ["rank 0 ended with MemoryError"]),
    ("not finite", 0, 0, ["step 2", "NonFiniteError", "nan"]),
    ("loader killed", 1, 2, ["rank 1 ended with RuntimeError: DataLoader worker", "unexpectedly"]),
    ("loader stopped", 0, 1, ["rank 0", "waiting for data", "it hangs"]),
    ("shards removed", 1, 0, ["rank", "FileNotFoundError", ".tar"]),
    ("shards cut", 1, 2, ["TooManyBadError", "crc32", ".tar"]),
    ("hangs while loading", 1, 0, ["rank 1", "waiting for data in step", "it hangs"]),
    ("reading fails", 1, 0, ["rank 1 ended with OSError: [Errno 5] Input/output error"]),
    ("token too large", 0, 0, ["TooManyBadError", "token 1000000"]),
    ("disk full at a commit", 0, 0, ["rank 0 ended with CommitError", "No space left"]),
    ("disk full at the sample log", 1, 0, ["rank 1 ended with OSError: [Errno 28]"]),
    ("captioning fails", 1, 0, ["rank 1 ended with RuntimeError: no words"]),
    ("scoring fails", 0, 0, ["rank 0 ended with ValueError: no scores"]),
    ("logging fails", 0, 0, ["rank 0 ended with OSError: [Errno 28]"]),
]


@pytest.mark.parametrize(
    ("fault", "rank", "workers", "told"),
    [*FAST, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW)],
    ids=[f"{row[0]} on {row[1]}" for row in (*FAST, *SLOW)],
)
def test_a_fault_ends_all_processes_and_is_named(
    scenes: Scenes, tmp_path: Path, fault: str, rank: int, workers: int, told: list[str]
) -> None:
    shards = tmp_path / "train"
    shutil.copytree(scenes.train, shards)
    log = tmp_path / "log"
    command = train_command(
        2, "--data.train", shards, "--data.val", scenes.val, "--run_dir", tmp_path / "run",
        "--data.workers", workers, "--train.epochs", 1000, "--train.eval_every_epochs", epochs(5),
        "--train.checkpoint_every_epochs", epochs(5), "--monitor.sample_log", log,
        "--monitor.log_every", 1, "--data.shuffle_block", 2,
    )  # fmt: skip
    command[command.index("train.py")] = "tests/fault/faulty_train.py"
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**ONE_THREAD, "FAULT": fault, "FAULT_RANK": str(rank)}, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_step(Path(f"{log}.rank{1 - rank}.jsonl"), 1, process)
        began = time.monotonic()
        family = family_of(process)
        output, _ = process.communicate(timeout=100)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert time.monotonic() - began < 60
        assert not alive
        assert process.returncode not in (0, 2, 85), output
        for text in told:
            assert text in output, output
    finally:
        kill_all(process)


@pytest.mark.slow
def test_who_waits_for_long_work_of_another_is_left_alone(scenes: Scenes, tmp_path: Path) -> None:
    """Rank 0 scores for 45 s, twice, once in mid-run and once at its end; rank 1 waits."""
    command = train_command(
        2, "--data.train", scenes.train, "--data.val", scenes.val, "--run_dir", tmp_path / "run",
        "--train.steps", 20, "--train.epochs", "null", "--train.eval_every_epochs", epochs(10),
    )  # fmt: skip
    command[command.index("train.py")] = "tests/fault/faulty_train.py"
    done = subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, timeout=250, check=False,
        env={**ONE_THREAD, "FAULT": "scoring takes long", "FAULT_RANK": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step 20: BLEU-1" in done.stdout


@pytest.mark.parametrize("restarts", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stop_in_an_evaluation_waits_for_nothing(
    scenes: Scenes, tmp_path: Path, restarts: int
) -> None:
    """A scheduler that gives two minutes would end a run for good whose scoring takes longer."""
    run = tmp_path / "run"
    command = train_command(
        2, "--data.train", scenes.train, "--data.val", scenes.val, "--run_dir", run,
        "--train.steps", 4, "--train.epochs", "null", "--train.eval_every_epochs", epochs(3),
    )  # fmt: skip
    faulty = list(command)
    faulty[command.index("train.py") : command.index("train.py") + 1] = [
        "--max_restarts", str(restarts), "tests/fault/faulty_train.py",
    ]  # fmt: skip
    process = subprocess.Popen(
        faulty, cwd=ROOT, text=True, stdout=subprocess.PIPE,
        env={**ONE_THREAD, "FAULT": "scoring takes long", "FAULT_RANK": "0"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (run / "checkpoints" / "step-00000003").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(3)  # it scores for 45 s
        process.terminate()
        output, _ = process.communicate(timeout=30)
    finally:
        kill_all(process)
    assert process.returncode == STOPPED
    assert "asked to stop: step 3 is committed" in output
    done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 3: BLEU-1" in done.stdout
    assert "step 4: BLEU-1" in done.stdout


def wait_for_step(log: Path, step: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > step):
        assert time.monotonic() < deadline
        if process.poll() is not None:
            return  # the fault came first
        time.sleep(0.05)


def family_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []  # it is over already


def kill_all(process: "subprocess.Popen[str]") -> None:
    """Nothing is left, however the test ended: stopped processes take no other signal."""
    if process.poll() is None:
        for child in family_of(process):
            child.send_signal(signal.SIGKILL)
        process.kill()
        process.wait()
