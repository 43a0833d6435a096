"""What only a GPU shows: mixed precision, NCCL, and the same samples as on a CPU."""

import re
from pathlib import Path

import pytest
import torch
from support.shards import Scenes
from support.training import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_precision_trains(scenes: Scenes, tmp_path: Path, precision: str) -> None:
    done = train(
        1, "--data.train", scenes.train, "--run_dir", tmp_path, "--train.steps", 40,
        "--train.precision", precision, "--monitor.log_every", 5, "--data.workers", 2, on_gpu=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"on cuda; precision {precision};" in done.stdout
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert losses[-1] < losses[0]
