"""The array script under a real SLURM, with a task that is killed and requeued on the way."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.repository import ROOT
from support.shards import Scenes, digests, run_shards
from support.training import TINY, read_sample_log

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "runuser")
PATIENCE_S = 240
CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which sbatch and scontrol speak to a SLURM of this machine."""
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing:
        pytest.skip(f"SLURM is not installed (slurm-wlm, munge): no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("starting SLURM's daemons needs root")
    if not (ROOT / ".venv/bin/python").exists():
        pytest.skip("the script runs .venv/bin/python: make setup")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # munged runs as a user of its own
    here = Path(__file__).parent
    subprocess.run(["bash", here / "start.sh", folder], check=True)
    yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run(["bash", here / "stop.sh", folder], check=True)


def test_an_array_with_a_requeued_task_gives_the_same_bytes(
    slurm: dict[str, str], real_data: Path, tmp_path: Path
) -> None:
    flickr = real_data / "flickr8k"
    annotations = flickr / "annotations" / "captions_val.json"
    tokenizer = tmp_path / "tokenizer.json"
    made = run_shards(
        "tokenizer", "--annotations", annotations, "--out", tokenizer, "--min-count", 1
    )
    assert made.returncode == 0, made.stderr
    options = [
        "--images", flickr / "images" / "val", "--annotations", annotations,
        "--tokenizer", tokenizer, "--name", "val", "--samples-per-shard", 5, "--workers", 1,
        "--resize-short", 128,
    ]  # fmt: skip
    out, whole = tmp_path / "out", tmp_path / "whole"
    submitted = subprocess.run(
        ["bash", ROOT / "launch/slurm/build_shards.sbatch", *map(str, options), "--out", out],
        env={**slurm, "JOBS": "2", "SBATCH_OUTPUT": str(tmp_path / "job-%A-%a.log")},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    array, last = (word for word in submitted.stdout.replace(",", "").split() if word.isdigit())
    until(lambda: len(list(out.glob("val-*.json"))) >= 3)
    subprocess.run(["scontrol", "requeue", f"{array}_0"], env=slurm, check=True)
    until(lambda: not queued(slurm))
    logs = "\n".join(path.read_text() for path in sorted(tmp_path.glob("job-*.log")))
    restarts = show(slurm, f"{array}_0")["Restarts"]
    assert restarts == "1", logs
    assert show(slurm, last)["JobState"] == "COMPLETED", logs
    done = run_shards("build", *options, "--out", whole)
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests(whole), logs
    assert run_shards("verify", out).returncode == 0


def test_training_is_requeued_when_it_is_asked_to_stop(
    slurm: dict[str, str], scenes: Scenes, tmp_path: Path
) -> None:
    """Two processes of one machine, on the CPU; the signal is that of SLURM's time limit."""
    run, log, output = tmp_path / "run", tmp_path / "log", tmp_path / "job.log"
    steps = 200
    settings = (
        *TINY, "--data.train", scenes.train, "--run_dir", run, "--train.steps", steps,
        "--train.epochs", "null", "--monitor.sample_log", log,
    )  # fmt: skip
    job = subprocess.run(
        ["sbatch", "--parsable", f"--output={output}", "launch/slurm/train.sbatch",
         *map(str, settings)],
        env={**slurm, **CPU, "SLURM_GPUS_ON_NODE": "2"},
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    until(lambda: (tmp_path / "log.rank1.jsonl").exists())
    subprocess.run(["scancel", "--signal=USR1", job], env=slurm, check=True)
    until(lambda: "asked to stop" in output.read_text())
    until(lambda: show(slurm, job)["Restarts"] == "1" and not queued(slurm))
    told = output.read_text()
    assert show(slurm, job)["JobState"] == "COMPLETED", told
    assert "2 processes on cpu" in told
    assert "from step" in told
    assert set(read_sample_log(log)) == set(range(steps))


def until(condition: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "SLURM took too long"
        time.sleep(0.02)


def queued(slurm: dict[str, str]) -> list[str]:
    listed = subprocess.run(
        ["squeue", "--noheader", "--format=%i %T %r"], env=slurm, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    time.sleep(0.5)
    return listed.stdout.splitlines()


def show(slurm: dict[str, str], job: str) -> dict[str, str]:
    told = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", job], env=slurm, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return dict(part.split("=", 1) for part in told.stdout.split() if "=" in part)
