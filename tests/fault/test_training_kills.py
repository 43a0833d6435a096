"""Training killed with `kill -9` at random moments ends with the weights of an undisturbed run."""

import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ONE_THREAD, ROOT, Scenes, read_sample_log, train, train_command
from safetensors.torch import load_file

NUM_STEPS = 60
SETTINGS = (
    "--train.steps", NUM_STEPS, "--train.epochs", "null", "--train.checkpoint_every", 3,
    "--data.workers", 1, "--optim.lr", 1e-4,
)  # fmt: skip
# On another number of processes sums are rounded in another order, and dropout falls differently.
SUM_ONLY = (
    "--model.encoder.batch_norm", "frozen", "--model.encoder.dropout", 0,
    "--model.decoder.dropout", 0,
)  # fmt: skip
TARGETS = ("rank 0", "rank 1", "loader", "launcher", "in a commit")


@dataclass(frozen=True)
class Whole:
    """A run that nobody disturbed."""

    weights: dict[str, torch.Tensor]
    samples: dict[int, list[object]]


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{NUM_STEPS:08d}" / "model.safetensors")


def undisturbed(scenes: Scenes, folder: Path, *settings: object) -> Whole:
    done = train(2, "--data.train", scenes.train, *SETTINGS, *settings, "--run_dir",
                 folder / "whole", "--monitor.sample_log", folder / "whole-log")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Whole(final_weights(folder / "whole"), read_sample_log(folder / "whole-log"))


def leftovers(run: Path) -> set[Path]:
    """Commits that are being written, or were when their process was killed."""
    return set(run.glob("checkpoints/.step-*.tmp"))


def wait_for_commits(run: Path, how_many: int, process: psutil.Popen) -> None:
    """Return the moment the last of so many commits begins, or when the process is done."""
    deadline = time.monotonic() + 60
    seen = leftovers(run)
    while how_many and process.poll() is None and time.monotonic() < deadline:
        now = leftovers(run)
        how_many -= len(now - seen)
        seen |= now
        time.sleep(0.001)


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


def kill_once(
    command: list[str], run: Path, target: str, processes: int, rng: random.Random
) -> bool:
    """Start, and kill at a random moment. Returns whether it was inside a commit."""
    before = leftovers(run)
    process = psutil.Popen(
        command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    family: list[psutil.Process] = []
    try:
        if target == "in a commit":
            wait_for_commits(run, rng.randrange(1, 5), process)
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(2, 14))
        family = process.children(recursive=True)
        victim = find_target(target, process, processes)
        if victim:
            victim.kill()
        process.wait(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, alive
    except psutil.NoSuchProcess:  # it ended in the very moment
        process.wait(timeout=60)
    finally:
        for left in family:
            if left.is_running():
                left.kill()
    return bool(leftovers(run) - before)


def killed_often(
    scenes: Scenes, folder: Path, settings: tuple[object, ...], worlds: list[int], seed: int
) -> tuple[dict[str, torch.Tensor], int]:
    """Kill a run as often as `worlds` is long, on so many processes each; then let it end on two.

    Returns:
        The weights in the end, and how many of the kills fell inside a commit.
    """
    run, rng = folder / "run", random.Random(seed)
    shared = ("--data.train", scenes.train, *SETTINGS, *settings, "--run_dir", run)
    in_commits = 0
    for number, processes in enumerate(worlds):
        log = folder / f"log-{number}"
        command = train_command(processes, *shared, "--monitor.sample_log", log)
        target = TARGETS[(number + seed) % len(TARGETS)]
        in_commits += kill_once(command, run, target, processes, rng)
    done = train(2, *shared, "--monitor.sample_log", folder / "log-last")
    assert done.returncode == 0, done.stderr
    assert not leftovers(run)
    return final_weights(run), in_commits


def check_samples(folder: Path, whole: Whole) -> None:
    """Every step that any of the starts did, it did on that step's own samples."""
    seen = set()
    for log in sorted({path.name.split(".")[0] for path in folder.glob("log-*.jsonl")}):
        for step, ids in read_sample_log(folder / log).items():
            assert set(ids) <= set(whole.samples[step])
            seen |= {(step, image_id) for image_id in ids}
    assert seen == {(step, image_id) for step, ids in whole.samples.items() for image_id in ids}


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(3, 2), *(pytest.param(20, seed, marks=pytest.mark.slow) for seed in range(5))],
)
@pytest.mark.timeout(1800)
def test_a_run_killed_anywhere_ends_bit_for_bit(
    scenes: Scenes, tmp_path: Path, kills: int, seed: int
) -> None:
    """Dropout on and BatchNorm training; of twenty kills four or more are inside a commit."""
    whole = undisturbed(scenes, tmp_path)
    weights, in_commits = killed_often(scenes, tmp_path, (), [2] * kills, seed)
    check_samples(tmp_path, whole)
    assert set(weights) == set(whole.weights)
    assert all(torch.equal(weights[name], whole.weights[name]) for name in weights)
    assert in_commits >= kills // len(TARGETS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_and_resumed_on_other_numbers_of_processes_ends_alike(
    scenes: Scenes, tmp_path: Path
) -> None:
    whole = undisturbed(scenes, tmp_path, *SUM_ONLY)
    weights, _ = killed_often(scenes, tmp_path, SUM_ONLY, [1, 2, 3, 1, 2, 4], 1)
    check_samples(tmp_path, whole)
    for name, expected in whole.weights.items():
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-6, msg=name)


def test_the_launcher_starts_a_run_again_from_its_last_commit(
    scenes: Scenes, tmp_path: Path
) -> None:
    """`--max_restarts`: rank 1 dies once, in step 10, and nobody has to do anything."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = train_command(2, "--data.train", scenes.train, *SETTINGS, "--run_dir", run,
                            "--monitor.sample_log", log)  # fmt: skip
    command[command.index("train.py") : command.index("train.py") + 1] = [
        "--max_restarts", "1", "tests/fault/faulty_train.py",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**ONE_THREAD, "FAULT": "killed", "FAULT_RANK": "1", "FAULT_STEP": "10"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "from step 9" in done.stdout
    assert (run / "checkpoints" / f"step-{NUM_STEPS:08d}").is_dir()
