"""What several tests need: a small drawn data set in shards, and where real data may lie."""

import hashlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from shards.sample_data import draw_data_set

# A deadline a case would fail on a busy machine and say nothing about the code.
settings.register_profile("capstream", deadline=None)
settings.load_profile("capstream")

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"


def run_shards(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m shards ...`, as a user runs it."""
    command = [sys.executable, "-m", "shards", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def build_shards(data: Path, split: str, tokenizer: Path, out: Path, *options: object) -> dict:
    """Build one split of a COCO-like folder, and give the summary."""
    done = run_shards(
        "build", "--images", data / f"{split}2017",
        "--annotations", data / "annotations" / f"captions_{split}2017.json",
        "--tokenizer", tokenizer, "--out", out, "--name", split, "--json", *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Scenes:
    """A drawn data set: COCO's layout, its tokenizer, its shards."""

    data: Path
    tokenizer: Path
    train: Path
    val: Path


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """63 training and 7 validation images, in uneven shards."""
    folder = tmp_path_factory.mktemp("scenes")
    drawn = Scenes(folder / "data", folder / "tokenizer.json", folder / "train", folder / "val")
    draw_data_set(drawn.data, 70, seed=0)
    annotations = drawn.data / "annotations" / "captions_train2017.json"
    done = run_shards(
        "tokenizer", "--annotations", annotations, "--out", drawn.tokenizer, "--min-count", 1
    )
    assert done.returncode == 0, done.stderr
    options = ("--samples-per-shard", 10, "--resize-short", 48, "--workers", 1)
    build_shards(drawn.data, "train", drawn.tokenizer, drawn.train, *options)
    build_shards(drawn.data, "val", drawn.tokenizer, drawn.val, *options)
    return drawn


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file, hidden ones too, but of the report, which holds a speed."""
    files = [path for path in sorted(folder.iterdir()) if path.name != "report.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def coco_folder(scenes: Scenes, folder: Path) -> tuple[Path, dict]:
    """A copy of the drawn data to spoil, and its parsed training annotations."""
    shutil.copytree(scenes.data, folder)
    return folder, json.loads((folder / "annotations" / "captions_train2017.json").read_text())


def save_annotations(folder: Path, annotations: object) -> None:
    (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(annotations))


def build_command(folder: Path, scenes: Scenes, out: Path, *options: object) -> list[object]:
    """`build` of the training split of a folder, with options that replace those given here."""
    usual = {
        "--images": folder / "train2017",
        "--annotations": folder / "annotations" / "captions_train2017.json",
        "--tokenizer": scenes.tokenizer, "--out": out, "--samples_per_shard": 10, "--workers": 1,
    }  # fmt: skip
    given = {str(option).replace("-", "_") for option in options}
    kept = [pair for pair in usual.items() if pair[0].replace("-", "_") not in given]
    return ["build", *(part for pair in kept for part in pair), *options]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real COCO and Flickr8k data, where there is one."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real data beside the checkout (../shared/data)")
    return REAL_DATA


TINY = (
    "--model.dim", 16, "--model.max_tokens", 8, "--data.image_size", 32, "--data.min_crop", 0.9,
    "--model.encoder.name", "shufflenet_v2_x0_5", "--model.encoder.hidden_dim", 16,
    "--model.decoder.hidden_dim", 16, "--data.workers", 0, "--train.eval_every_epochs", 0,
    "--data.global_batch_size", 10, "--optim.warmup_epochs", 0,
    "--train.checkpoint_every_epochs", 0,
)  # fmt: skip


def tiny_settings(*settings: object) -> list[str]:
    """The options of a tiny model; settings given here replace those of `TINY`."""
    options = [*TINY, *settings]
    latest = dict(zip(options[::2], options[1::2], strict=True))
    return [str(text) for option in latest.items() for text in option]


def epochs(steps: int) -> float:
    """So many steps of `TINY`, of 10 images each, in epochs of the 63 drawn training images."""
    return math.floor(1e4 * steps * 10 / 63) / 1e4  # just before the step's end: it rounds to it


def train_command(processes: int, *settings: object) -> list[str]:
    """The command line that trains a tiny model on so many CPU processes."""
    launched = ("-m", "launch", "--config_file", "launch/cpu.yaml", "--num_processes", processes)
    start = [sys.executable, *(launched if processes > 1 else ()), "train.py"]
    return [*map(str, start), *tiny_settings(*settings)]


def train(
    processes: int, *settings: object, on_gpu: bool = False
) -> subprocess.CompletedProcess[str]:
    """Train a tiny model to the end."""
    return subprocess.run(
        train_command(processes, *settings),
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=400,
        env=None if on_gpu else ONE_THREAD,
    )  # fmt: skip


# The same on a machine with GPUs: what is asked of two CPU processes stays on the CPU.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def read_sample_log(prefix: Path) -> dict[int, list[object]]:
    """Step -> image ids of the global batch in slot order, joined from all ranks' logs.

    A step that was repeated after a kill counts as it was last done.
    """
    ranks = []
    for number in range(len(list(prefix.parent.glob(f"{prefix.name}.rank*.jsonl")))):
        lines = Path(f"{prefix}.rank{number}.jsonl").read_text().splitlines()
        ranks.append({line["step"]: line["ids"] for line in map(json.loads, lines)})
    steps: dict[int, list[object]] = {}
    for step in ranks[0]:
        shares = [rank[step] for rank in ranks]
        slots = itertools.zip_longest(*shares, fillvalue=None)
        steps[step] = [image_id for row in slots for image_id in row if image_id is not None]
    return steps
