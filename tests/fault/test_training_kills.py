"""Training killed with `kill -9` at random moments ends with the weights of an undisturbed run."""

import functools
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes
from support.training import epochs, read_sample_log, train, train_command

from pipeline.runtime.preemption import STOPPED

SETTINGS = (
    "--train.epochs", "null", "--train.checkpoint_every_epochs", epochs(3), "--data.workers", 1,
    "--optim.lr", 1e-4,
)  # fmt: skip
# On another number of processes sums are rounded in another order, and dropout falls differently.
SUM_ONLY = (
    "--model.encoder.batch_norm", "frozen", "--model.encoder.dropout", 0,
    "--model.decoder.dropout", 0,
)  # fmt: skip
TARGETS = ("rank 0", "in a commit", "rank 1", "loader", "in a commit", "launcher")
STEPS_EACH = 20  # that a start does before it is killed, or somewhat more


@dataclass(frozen=True)
class Whole:
    """A run that nobody disturbed."""

    num_steps: int
    weights: dict[str, torch.Tensor]
    samples: dict[int, list[object]]


def final_weights(run: Path, num_steps: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{num_steps:08d}" / "model.safetensors")


def undisturbed(scenes: Scenes, folder: Path, num_steps: int, *settings: object) -> Whole:
    done = train(2, "--data.train", scenes.train, *SETTINGS, *settings, "--run_dir",
                 folder / "whole", "--train.steps", num_steps,
                 "--monitor.sample_log", folder / "whole-log")  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = final_weights(folder / "whole", num_steps)
    return Whole(num_steps, weights, read_sample_log(folder / "whole-log"))


def leftovers(run: Path) -> set[Path]:
    """Commits that are being written, or were when their process was killed."""
    return set(run.glob("checkpoints/.step-*.tmp"))


def wait_until(reached: Callable[[], bool], process: psutil.Popen) -> None:
    deadline = time.monotonic() + 90
    while process.poll() is None and not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def num_steps_done(log: Path) -> int:
    lines = Path(f"{log}.rank0.jsonl")
    return lines.read_text().count("\n") if lines.exists() else 0


def find_target(target: str, process: psutil.Popen, processes: int) -> psutil.Process | None:
    """The process to kill, if it is there already."""
    if target == "launcher" or processes == 1:
        return process
    ranks = [p for p in process.children() if "train.py" in " ".join(p.cmdline())]
    ranks.sort(key=lambda p: p.environ().get("LOCAL_RANK", "9"))
    if target == "loader":
        loaders = [p for rank in ranks for p in rank.children(recursive=True) if not p.children()]
        return loaders[-1] if loaders else None
    number = 1 if target == "rank 1" else 0
    return ranks[number] if number < len(ranks) else None


def stop_in_a_commit(
    victim: psutil.Process, run: Path, process: psutil.Popen, rng: random.Random
) -> None:
    """Suspend it at a random moment of a commit: of the first in which it is not too late."""
    while process.poll() is None:
        before = leftovers(run)
        wait_until(lambda before=before: bool(leftovers(run) - before), process)
        time.sleep(rng.uniform(0, 0.01))
        victim.suspend()
        if leftovers(run) - before:
            return
        victim.resume()


def kill_once(
    command: list[str], run: Path, log: Path, target: str, processes: int, rng: random.Random
) -> bool:
    """Start, and kill at a random moment of the start, of a step or of a commit.

    Returns:
        Whether it was inside a commit.
    """
    before = leftovers(run)
    process = psutil.Popen(
        command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    family: list[psutil.Process] = []
    try:
        steps = rng.randrange(14)
        if target == "in a commit":
            commits = rng.randrange(1, 4)
            wait_until(lambda: num_steps_done(log) > 3 * commits, process)
            victim = find_target("rank 0", process, processes)
            assert victim is not None
            stop_in_a_commit(victim, run, process, rng)
        elif steps:
            wait_until(lambda: num_steps_done(log) >= steps, process)
            time.sleep(rng.uniform(0, 0.05))
            victim = find_target(target, process, processes)
        else:
            time.sleep(rng.uniform(0, 8))
            victim = find_target(target, process, processes)
        family = process.children(recursive=True)
        assert process.poll() is None  # it was not too late
        if victim:
            victim.kill()
        else:  # it is not there yet
            process.kill()
        process.wait(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, alive
    finally:
        for left in family:
            if left.is_running():
                left.kill()
    return bool(leftovers(run) - before)


def killed_often(
    scenes: Scenes, folder: Path, whole: Whole, settings: tuple[object, ...], worlds: list[int],
    seed: int,
) -> tuple[dict[str, torch.Tensor], int]:  # fmt: skip
    """Kill a run as often as `worlds` is long, on so many processes each; then let it end on two.

    Returns:
        The weights in the end, and how many of the kills fell inside a commit.
    """
    run, rng = folder / "run", random.Random(seed)
    shared = ("--data.train", scenes.train, *SETTINGS, *settings, "--run_dir", run,
              "--train.steps", whole.num_steps)  # fmt: skip
    in_commits = 0
    for number, processes in enumerate(worlds):
        log = folder / f"log-{number}"
        command = train_command(processes, *shared, "--monitor.sample_log", log)
        target = TARGETS[(number + seed) % len(TARGETS)]
        in_commits += kill_once(command, run, log, target, processes, rng)
    done = train(2, *shared, "--monitor.sample_log", folder / "log-last")
    assert done.returncode == 0, done.stderr
    assert not leftovers(run)
    return final_weights(run, whole.num_steps), in_commits


def check_samples(folder: Path, whole: Whole) -> None:
    """Every step that any of the starts did, it did on that step's own samples."""
    seen = set()
    for log in folder.glob("log-*.rank*.jsonl"):  # a killed rank may lack the last step
        for line in map(json.loads, log.read_text().splitlines()):
            assert set(line["ids"]) <= set(whole.samples[line["step"]])
            seen |= {(line["step"], image_id) for image_id in line["ids"]}
    assert seen == {(step, image_id) for step, ids in whole.samples.items() for image_id in ids}


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(2, 3), *(pytest.param(20, seed, marks=pytest.mark.slow) for seed in range(5))],
)
@pytest.mark.timeout(1800)
def test_a_run_killed_anywhere_ends_bit_for_bit(
    scenes: Scenes, tmp_path: Path, kills: int, seed: int
) -> None:
    """Dropout on and BatchNorm training; of twenty kills four or more are inside a commit."""
    whole = undisturbed(scenes, tmp_path, STEPS_EACH * (kills + 1))
    weights, in_commits = killed_often(scenes, tmp_path, whole, (), [2] * kills, seed)
    check_samples(tmp_path, whole)
    assert set(weights) == set(whole.weights)
    assert all(torch.equal(weights[name], whole.weights[name]) for name in weights)
    print(f"{in_commits} of {kills} kills were inside a commit", file=sys.stderr)
    assert in_commits >= max(1, kills // 5)


def first_steps(folder: Path, worlds: list[int]) -> list[tuple[int, int]]:
    """(processes, first step) of each start that began a step; the last start has two processes."""
    starts = []
    for name, processes in [
        *((f"log-{n}", world) for n, world in enumerate(worlds)),
        ("log-last", 2),
    ]:
        log = folder / f"{name}.rank0.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        starts += [(processes, json.loads(line)["step"]) for line in lines[:1]]
    return starts


def is_beyond(log: Path, steps: int) -> bool:
    return num_steps_done(log) > steps


def without_kills(
    scenes: Scenes, folder: Path, settings: tuple[object, ...], starts: list[tuple[int, int]],
    num_steps: int,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The weights in the end of a run whose number of processes changes at these steps.

    Each start trains a little further than the next one's first step and is asked to stop. Its
    later checkpoints are removed.
    """
    run, log = folder / "replay", folder / "replay-log"
    shared = ("--data.train", scenes.train, *SETTINGS, *settings, "--run_dir", run,
              "--train.steps", num_steps, "--train.keep", num_steps)  # fmt: skip
    for (processes, first), (_, following) in itertools.pairwise(starts):
        if following == first:
            continue  # it was killed before its first commit
        command = train_command(processes, *shared, "--monitor.sample_log", f"{log}-{first}")
        process = psutil.Popen(command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL)
        beyond = functools.partial(is_beyond, Path(f"{log}-{first}"), following - first)
        wait_until(beyond, process)
        process.terminate()
        assert process.wait(timeout=60) in (0, STOPPED)
        for checkpoint in run.glob("checkpoints/step-*"):
            if int(checkpoint.name.removeprefix("step-")) > following:
                shutil.rmtree(checkpoint)
    done = train(2, *shared)
    assert done.returncode == 0, done.stderr
    assert f"from step {starts[-1][1]};" in done.stdout
    return final_weights(run, num_steps)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_and_resumed_on_other_numbers_of_processes_ends_bit_for_bit(
    scenes: Scenes, tmp_path: Path
) -> None:
    """As if the number had been changed at the same steps without any kill.

    A run on two processes throughout takes the same samples. Its weights are others, since sums
    over other numbers of processes round differently, which training makes large (docs/log.md).
    """
    worlds = [1, 2, 3, 1, 2, 4]
    num_steps = STEPS_EACH * (len(worlds) + 1)
    whole = undisturbed(scenes, tmp_path, num_steps, *SUM_ONLY)
    weights, _ = killed_often(scenes, tmp_path, whole, SUM_ONLY, worlds, 1)
    check_samples(tmp_path, whole)
    starts = first_steps(tmp_path, worlds)
    assert len({processes for processes, _ in starts}) >= 3
    expected = without_kills(scenes, tmp_path, SUM_ONLY, starts, num_steps)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_launcher_starts_a_run_again_from_its_last_commit(
    scenes: Scenes, tmp_path: Path
) -> None:
    """`--max_restarts`: rank 1 dies once, in step 10, and nobody has to do anything."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = train_command(2, "--data.train", scenes.train, *SETTINGS, "--run_dir", run,
                            "--train.steps", 60, "--monitor.sample_log", log)  # fmt: skip
    command[command.index("train.py") : command.index("train.py") + 1] = [
        "--max_restarts", "1", "tests/fault/faulty_train.py",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**ONE_THREAD, "FAULT": "killed", "FAULT_RANK": "1", "FAULT_STEP": "10"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "from step 9" in done.stdout
    assert (run / "checkpoints" / "step-00000060").is_dir()
