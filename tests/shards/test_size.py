"""A million records: what a process takes, and how planning grows."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from support.repository import ROOT
from support.shards import Scenes

from shards.format.manifest import read_manifest
from shards.images import ImagePolicy
from shards.jobs import plan_jobs
from shards.sources.read import Source, read_source

NUM_RECORDS = 1_000_000
PER_FOLDER = 1000
MOST_BYTES = 1 << 30

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """captions.jsonl of a million images: a thousand names for each of a thousand files."""
    folder = tmp_path_factory.mktemp("many")
    first = folder / "images" / "0000"
    first.mkdir(parents=True)
    for number in range(PER_FOLDER):
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(first / f"{number:04d}.jpg")
    for number in range(1, NUM_RECORDS // PER_FOLDER):
        (folder / "images" / f"{number:04d}").symlink_to("0000")
    with open(folder / "captions.jsonl", "w") as file:
        for number in range(NUM_RECORDS):
            name = f"{number // PER_FOLDER:04d}/{number % PER_FOLDER:04d}.jpg"
            line = {"image": name, "caption": f"a {'red' if number % 2 else 'blue'} circle"}
            file.write(json.dumps(line) + "\n")
    return folder


def test_a_million_records_stay_under_a_gibibyte(
    scenes: Scenes, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build = psutil.Popen(
        [sys.executable, "-m", "shards", "build", "--images", str(many / "images"),
         "--annotations", str(many / "captions.jsonl"), "--tokenizer", str(scenes.tokenizer),
         "--out", str(out), "--resize_short", "0", "--workers", "2"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    most: dict[int, int] = {}
    while build.poll() is None:
        for process in [build, *build.children()]:
            try:
                most[process.pid] = max(most.get(process.pid, 0), process.memory_info().rss)
            except psutil.NoSuchProcess:  # it has ended meanwhile
                continue
        time.sleep(0.1)
    said = build.stdout.read()
    assert build.returncode == 0
    manifest = read_manifest(out)
    assert (manifest.num_samples, len(manifest.shards)) == (NUM_RECORDS, 1000)
    print(said, {pid: f"{size / 2**20:.0f} MiB" for pid, size in most.items()})
    assert max(most.values()) < MOST_BYTES, most


def test_planning_grows_linearly(scenes: Scenes, many: Path, tmp_path: Path) -> None:
    lines = (many / "captions.jsonl").read_text().splitlines(keepends=True)
    seconds = {}
    for count in (NUM_RECORDS // 4, NUM_RECORDS // 2, NUM_RECORDS):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(lines[:count]))
        started = time.process_time()
        jobs = plan_jobs(
            read_source(Source((path,))), many / "images", tmp_path, scenes.tokenizer, "train",
            ImagePolicy(0, 90), 1000,
        )  # fmt: skip
        seconds[count] = time.process_time() - started
        assert sum(len(job.records) for job in jobs) == count
        del jobs
    print(seconds)
    assert seconds[NUM_RECORDS] < 4 * 1.3 * seconds[NUM_RECORDS // 4], seconds
