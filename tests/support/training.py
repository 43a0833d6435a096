"""Training runs of a tiny model, started as users start them."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

from support.repository import ONE_THREAD, ROOT

TINY = (
    "--model.dim", 16, "--generation.max_tokens", 8, "--data.image_size", 32,
    "--data.min_crop", 0.9,
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
