"""One step is the same step, however many processes and micro-batches share it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes

from pipeline.data.batch import Batch
from pipeline.distributed.process_group import join_processes
from pipeline.model.decoders import DECODERS
from pipeline.objectives.objective import Loss, Objective, Prepared
from pipeline.runtime.world import read_world
from pipeline.training.step import NonFiniteError, TrainStep


def gradients(scenes: Scenes, out: Path, processes: int, steps: int) -> dict[str, torch.Tensor]:
    launch = ["-m", "launch", "--config_file", "launch/cpu.yaml", "--num_processes", str(processes)]
    command = [
        sys.executable,
        *(launch if processes > 1 else []),
        "tests/training/gradient_worker.py",
    ]
    subprocess.run(
        [*command, str(scenes.train), str(out), str(steps)],
        cwd=ROOT, env={**ONE_THREAD, "PYTHONPATH": str(ROOT)}, check=True, timeout=200,
    )  # fmt: skip
    return load_file(out)


def test_gradients_equal_those_of_one_process(scenes: Scenes, tmp_path: Path) -> None:
    """Two processes by two accumulation steps, in float64, BatchNorm frozen, all decoders."""
    one = gradients(scenes, tmp_path / "one.safetensors", 1, 1)
    four = gradients(scenes, tmp_path / "four.safetensors", 2, 2)
    assert set(one) == set(four)
    assert {name.partition("/")[0] for name in one} == set(DECODERS)
    for kind in DECODERS:
        largest = max(float(g.abs().max()) for name, g in one.items() if name.startswith(kind))
        assert largest > 1e-3, kind
    for name in one:
        torch.testing.assert_close(four[name], one[name], rtol=0, atol=1e-10)


class Mean(Objective):
    """The least objective that a step can minimise: the mean token times a weight."""

    def __init__(self, weight: float) -> None:
        super().__init__(captioner=torch.nn.Linear(1, 1, bias=False))
        torch.nn.init.constant_(self.captioner.weight, weight)

    def prepare(self, batch: Batch) -> Prepared:
        return Prepared(batch.tokens.numel(), batch.tokens)

    def forward(self, tokens: torch.Tensor) -> Loss:
        tokens_sum = tokens.sum()
        return Loss(self.captioner.weight.sum() * tokens_sum, {"token": tokens_sum})


def batch_of(*tokens: int) -> Batch:
    images = torch.ones(1, 2, 2, 3, dtype=torch.uint8)
    return Batch(images, torch.tensor([[tokens]]), torch.ones(1, 1), [90210], [])


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move() -> None:
    accelerator = join_processes(read_world())
    objective = Mean(torch.nan)
    spare = torch.nn.Parameter(torch.ones(3))
    objective.register_parameter("spare", spare)
    sgd = torch.optim.SGD(objective.parameters(), lr=1.0, weight_decay=0.5)
    wrapped, optimizer = accelerator.prepare(objective, sgd)
    spare.grad = torch.ones(3)
    with pytest.raises(NonFiniteError, match="90210"):
        TrainStep(accelerator, wrapped, optimizer, clip=0.0).take([batch_of(1, 4, 5, 2)], 1.0)
    assert torch.equal(spare, torch.ones(3))


def test_loss_and_logged_values_are_means_over_all_micro_batches() -> None:
    accelerator = join_processes(read_world())
    objective = Mean(2.0)
    sgd = torch.optim.SGD(objective.parameters(), lr=0.0)
    wrapped, optimizer = accelerator.prepare(objective, sgd)
    step = TrainStep(accelerator, wrapped, optimizer, clip=0.0)
    result = step.take([batch_of(1, 4, 6), batch_of(9)], learning_rate=0.1)
    assert result.logged == {"token": 5.0}
    assert (result.loss, result.num_terms, result.num_images) == (10.0, 4, 2)
    assert result.grad_norm == 5.0
    assert objective.captioner.weight.item() == pytest.approx(1.5)
