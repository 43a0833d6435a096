"""A backbone that is frozen in the first epochs, in real training runs."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.shards import Scenes
from support.training import epochs, train
from torchvision.models import shufflenet_v2_x0_5

FROZEN_STEPS, STEPS = 3, 6
BACKBONE = "encoder.backbone.network."


@pytest.mark.parametrize(
    ("processes", "resumed_from"),
    [
        (1, FROZEN_STEPS - 1),
        (2, FROZEN_STEPS),
        *(pytest.param(2, step, marks=pytest.mark.slow) for step in (1, STEPS - 1)),
    ],
)
def test_it_stays_as_it_was_and_resuming_does_not_change_when_it_is_trained(
    scenes: Scenes, tmp_path: Path, processes: int, resumed_from: int
) -> None:
    path = tmp_path / "weights.pth"
    source = shufflenet_v2_x0_5().state_dict()
    torch.save(source, path)
    settings = (
        "--data.train", scenes.train, "--train.steps", STEPS, "--model.encoder.weights", path,
        "--model.encoder.frozen_epochs", epochs(FROZEN_STEPS), "--model.encoder.lr_factor", 0.5,
        "--model.encoder.batch_norm", "train", "--train.accumulation_steps", 2, "--optim.lr", 1e-2,
        "--train.checkpoint_minutes", 1e-6, "--train.keep", 99,
    )  # fmt: skip
    done = train(processes, *settings, "--run_dir", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert f"parameters trained, the backbone from step {FROZEN_STEPS} on" in done.stdout

    def files(run: str, step: int) -> Path:
        return tmp_path / run / "checkpoints" / f"step-{step:08d}"

    for step in range(1, STEPS + 1):
        weights = load_file(files("whole", step) / "model.safetensors")
        kept = [
            torch.equal(weights[BACKBONE + name], value)
            for name, value in source.items()
            if BACKBONE + name in weights and weights[BACKBONE + name].is_floating_point()
        ]
        assert len(kept) > 200
        assert all(kept) if step <= FROZEN_STEPS else not any(kept), step

    shutil.copytree(files("whole", resumed_from), files("resumed", resumed_from))
    done = train(processes, *settings, "--run_dir", tmp_path / "resumed")
    assert done.returncode == 0, done.stderr
    assert f"from step {resumed_from}" in done.stdout
    expected, found = (
        load_file(files(name, STEPS) / "model.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    moments, same = (
        torch.load(files(name, STEPS) / "optimizer.pt", weights_only=True)["optimizer"]["state"]
        for name in ("whole", "resumed")
    )
    assert moments.keys() == same.keys()
    assert all(torch.equal(moments[i]["exp_avg"], same[i]["exp_avg"]) for i in moments)
