"""However a training run ends, all its processes end with it, and nothing committed is lost."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes
from support.training import epochs, train, train_command

from pipeline.checkpoint.commit import check_checkpoint
from pipeline.checkpoint.folder import list_checkpoints
from pipeline.runtime.preemption import STOPPED
from pipeline.runtime.run_lock import lock_run_dir
from shards.format.manifest import read_manifest


def wait_until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def launch_two(*settings: object, options: tuple[str, ...] = ()) -> psutil.Popen:
    """Start the launcher, with options of its own, of two training processes."""
    command = train_command(2, *settings)
    script = command.index("train.py")
    command[script:script] = options
    return psutil.Popen(command, cwd=ROOT, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)


def start(log: Path, *settings: object) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own, and wait until it has done three steps."""
    process = subprocess.Popen(
        train_command(1, *settings, "--monitor.sample_log", log),
        cwd=ROOT, env=ONE_THREAD, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lines = Path(f"{log}.rank0.jsonl")
    deadline = time.monotonic() + 120
    while not (lines.exists() and len(lines.read_text().splitlines()) > 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_bad_sample_ends_a_run_with_loader_workers(scenes: Scenes, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(scenes.train, damaged)
    tar = damaged / read_manifest(damaged).shards[2].file
    data = bytearray(tar.read_bytes())
    data[700] ^= 1  # in the first image
    tar.write_bytes(data)
    started = time.monotonic()
    done = train(
        1, "--data.train", damaged, "--run_dir", tmp_path / "run", "--data.workers", 2,
        "--train.epochs", 1,
    )  # fmt: skip
    assert done.returncode not in (0, 2, STOPPED)
    assert "crc32" in done.stderr
    assert str(tar) in done.stderr
    assert time.monotonic() - started < 60


def test_nothing_is_left_of_a_killed_run(scenes: Scenes, tmp_path: Path) -> None:
    process = start(
        tmp_path / "log", "--data.train", scenes.train, "--run_dir", tmp_path / "run",
        "--data.workers", 2, "--train.epochs", 500,
    )  # fmt: skip
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3  # two loaders and the server that they were forked from
    for child in children:
        child.suspend()  # still there, and with them whatever they might have inherited
    with pytest.raises(ValueError, match=f"in use by another run .process {process.pid} on"):
        lock_run_dir(tmp_path / "run")
    process.kill()
    process.wait()
    lock_run_dir(tmp_path / "run").close()
    for child in children:
        child.resume()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_a_commit_that_does_not_fit_ends_the_run(scenes: Scenes, tmp_path: Path) -> None:
    """Files of 1 MiB at the most, where the weights need more."""
    run = tmp_path / "run"
    command = train_command(
        1, "--data.train", scenes.train, "--run_dir", run, "--data.workers", 1,
        "--train.epochs", 500, "--train.checkpoint_every_epochs", epochs(3),
    )  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 1024; exec "$@"', "limited", *command],
        cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode not in (0, 2, STOPPED)
    assert f"{run / 'checkpoints'}: a checkpoint could not be written" in done.stderr
    assert "File too large" in done.stderr
    assert not list((run / "checkpoints").iterdir())


def test_a_second_run_in_the_same_folder_is_one_line(scenes: Scenes, tmp_path: Path) -> None:
    settings = ("--data.train", scenes.train, "--run_dir", tmp_path / "run", "--train.epochs", 500)
    process = start(tmp_path / "log", *settings)
    second = train(1, *settings)
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert "run_dir" in line
    assert f"process {process.pid} on" in line
    process.terminate()
    assert process.wait(timeout=60) == STOPPED  # undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_commits(
    scenes: Scenes, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = start(
        tmp_path / "log", "--data.train", scenes.train, "--run_dir", run,
        "--data.workers", 2, "--train.epochs", 500, "--train.accumulation_steps", 2,
    )  # fmt: skip
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == STOPPED
    (commit,) = list_checkpoints(run / "checkpoints")
    check_checkpoint(commit)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("restarts", [0, 2])
def test_a_stop_while_starting_ends_at_once_and_is_not_forgotten(
    scenes: Scenes, tmp_path: Path, number: signal.Signals, restarts: int
) -> None:
    """With restarts to spare the launcher would start anew what the signal ended."""
    process = launch_two(
        "--data.train", scenes.train, "--run_dir", tmp_path / "run", "--train.epochs", 500,
        options=("--max_restarts", str(restarts)),
    )  # fmt: skip
    wait_until(lambda: len(process.children()) == 2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=45)
    assert process.returncode == STOPPED
    assert "Traceback" not in stderr
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_a_stop_before_the_processes_are_started_is_not_forgotten(
    scenes: Scenes, tmp_path: Path
) -> None:
    process = launch_two("--data.train", scenes.train, "--run_dir", tmp_path / "run")
    wait_until(lambda: any("libtorch" in mapped.path for mapped in process.memory_maps()))
    assert not process.children()
    process.terminate()
    _, stderr = process.communicate(timeout=45)
    assert process.returncode == STOPPED, stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_ends_as_it_is_asked_to_stop_is_done(scenes: Scenes, tmp_path: Path) -> None:
    """A scheduler must not start again what is done."""
    run = tmp_path / "run"
    process = launch_two("--data.train", scenes.train, "--run_dir", run, "--train.steps", 1)
    wait_until((run / "checkpoints" / "best").exists)
    process.terminate()
    _, stderr = process.communicate(timeout=45)
    assert process.returncode == 0, stderr


def test_two_processes_refuse_a_folder_in_use_without_waiting_for_each_other(
    scenes: Scenes, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    taken = {}
    with lock_run_dir(tmp_path / "run"):
        for processes in (1, 2):
            started = time.monotonic()
            done = train(processes, "--data.train", scenes.train, "--run_dir", tmp_path / "run")
            taken[processes] = time.monotonic() - started
            assert done.returncode == 2
            assert "in use by another run" in done.stderr
    assert taken[2] < 3 * taken[1] + 20  # the agent's own patience is 30 s


def test_processes_that_start_without_their_launcher_end(scenes: Scenes, tmp_path: Path) -> None:
    """Killed outright, it keeps no store in which they could find each other."""
    launcher = launch_two(
        "--data.train", scenes.train, "--run_dir", tmp_path / "run", "--train.epochs", 500
    )
    wait_until(lambda: len(launcher.children()) == 2)
    ranks = launcher.children()
    time.sleep(0.5)  # they import torch
    launcher.kill()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    assert "the launcher is gone" in launcher.communicate()[1]
