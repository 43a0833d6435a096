"""One step is the same step, however many processes and micro-batches share it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ONE_THREAD, ROOT, Scenes
from safetensors.torch import load_file

from pipeline.data.batch import Batch
from pipeline.distributed.process_group import join_processes
from pipeline.runtime.world import read_world
from pipeline.training.step import NonFiniteError, train_step


def gradients(scenes: Scenes, out: Path, processes: int, steps: int) -> dict[str, torch.Tensor]:
    launch = ["-m", "launch", "--config_file", "launch/cpu.yaml", "--num_processes", str(processes)]
    command = [
        sys.executable,
        *(launch if processes > 1 else []),
        "tests/support/gradient_worker.py",
    ]
    subprocess.run(
        [*command, str(scenes.train), str(out), str(steps)],
        cwd=ROOT, env={**ONE_THREAD, "PYTHONPATH": str(ROOT)}, check=True, timeout=200,
    )  # fmt: skip
    return load_file(out)


def test_gradients_equal_those_of_one_process(scenes: Scenes, tmp_path: Path) -> None:
    """Two processes by two accumulation steps, in float64, BatchNorm frozen."""
    one = gradients(scenes, tmp_path / "one.safetensors", 1, 1)
    four = gradients(scenes, tmp_path / "four.safetensors", 2, 2)
    assert set(one) == set(four)
    assert max(float(g.abs().max()) for g in one.values()) > 1e-3
    for name in one:
        torch.testing.assert_close(four[name], one[name], rtol=0, atol=1e-10)


class Linear(torch.nn.Module):
    """The least model that `train_step` can train."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(7))

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(*tokens.flatten(0, 1).shape, 7) * images.double().mean()


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move() -> None:
    accelerator = join_processes(read_world())
    model = Linear()
    with torch.no_grad():
        model.weight[0] = torch.nan
    wrapped, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    tokens = torch.tensor([[[1, 4, 5, 2]]])
    batch = Batch(torch.ones(1, 2, 2, 3, dtype=torch.uint8), tokens, torch.ones(1, 1), [90210], [])
    before = model.weight.detach().clone()
    with pytest.raises(NonFiniteError, match="90210"):
        train_step(accelerator, wrapped, optimizer, [batch], 1.0, 0.0)
    assert torch.equal(model.weight[1:], before[1:])
