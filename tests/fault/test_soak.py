"""Ten minutes of training on many small shards: no process grows, no descriptor is left open."""

import json
import statistics
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes, run_shards
from support.training import train_command

NUM_SAMPLES, NUM_SHARDS = 200_000, 2_000
MINUTES = 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def many(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of tiny images."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "images").mkdir()
    for number in range(100):
        Image.new("RGB", (32, 32), (2 * number, 0, 0)).save(folder / "images" / f"{number}.jpg")
    for number in range(100, NUM_SAMPLES):
        (folder / "images" / f"{number}.jpg").symlink_to(f"{number % 100}.jpg")
    with open(folder / "captions.jsonl", "w") as file:
        for number in range(NUM_SAMPLES):
            line = {"image": f"{number}.jpg", "caption": "a red circle on a green background"}
            file.write(json.dumps(line) + "\n")
    done = run_shards(
        "build", "--images", folder / "images", "--annotations", folder / "captions.jsonl",
        "--tokenizer", scenes.tokenizer, "--out", folder / "shards", "--resize-short", 0,
        "--samples-per-shard", NUM_SAMPLES // NUM_SHARDS, "--workers", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "shards"


def test_ten_minutes_leave_every_process_as_it_was(many: Path, tmp_path: Path) -> None:
    command = train_command(
        2, "--data.train", many, "--run_dir", tmp_path / "run", "--data.workers", 2,
        "--train.epochs", 1000, "--train.checkpoint_every_epochs", 200 * 64 / NUM_SAMPLES,
        "--data.global_batch_size", 64,
    )  # fmt: skip
    log = open(tmp_path / "output", "w")  # noqa: SIM115
    launcher = psutil.Popen(command, cwd=ROOT, env=ONE_THREAD, stdout=log, stderr=log)
    measured: dict[int, list[tuple[float, int, int]]] = {}
    names: dict[int, str] = {}
    start = time.monotonic()
    try:
        while (elapsed := time.monotonic() - start) < 60 * (MINUTES + 1):
            assert launcher.poll() is None, (tmp_path / "output").read_text()[-2000:]
            for process in [launcher, *launcher.children(recursive=True)]:
                row = (elapsed, process.memory_full_info().uss, process.num_fds())
                measured.setdefault(process.pid, []).append(row)
                names[process.pid] = " ".join(process.cmdline())[-60:]
            time.sleep(2)
    finally:
        for process in launcher.children(recursive=True):
            process.kill()
        launcher.kill()
        launcher.wait()
    steps = (tmp_path / "output").read_text().splitlines()
    print(steps[-1], file=sys.stderr)
    lasting = {pid: rows for pid, rows in measured.items() if rows[-1][0] > 60 * MINUTES}
    assert len(lasting) >= 7  # the launcher, two ranks with two loaders each
    for pid, rows in lasting.items():
        early, late = (
            [row for row in rows if begin <= row[0] < begin + 60] for begin in (60, 60 * MINUTES)
        )
        before, after = (statistics.median(row[1] for row in part) for part in (early, late))
        print(f"{names[pid]}: {before / 1e6:.1f} -> {after / 1e6:.1f} MB", file=sys.stderr)
        assert after < 1.05 * before, names[pid]
        assert max(row[2] for row in late) <= max(row[2] for row in early), names[pid]
