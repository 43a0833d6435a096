"""Whole trainings with every kind of decoder."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.shards import Scenes
from support.training import tiny_settings

from pipeline.config.parser import parse_config
from pipeline.model.decoders import DECODERS
from pipeline.runtime.world import World
from pipeline.training.inputs import prepare
from pipeline.training.trainer import fit

STEPS, RESUMED_FROM = 5, 2


@pytest.mark.parametrize("kind", DECODERS)
def test_a_resumed_run_ends_bit_for_bit(scenes: Scenes, tmp_path: Path, kind: str) -> None:
    def checkpoint(run: str, step: int) -> Path:
        return tmp_path / run / "checkpoints" / f"step-{step:08d}"

    def end_of(run: str) -> tuple[dict[str, torch.Tensor], dict[int, dict[str, torch.Tensor]]]:
        settings = tiny_settings(
            "--data.train", scenes.train, "--run_dir", tmp_path / run, "--train.steps", STEPS,
            "--train.checkpoint_minutes", 1e-6, "--train.keep", 9, "--data.image_size", 64,
            "--train.label_smoothing", 0.1, "--model.decoder.kind", kind,
            "--model.decoder.attention_dim", 8, "--model.decoder.layers", 2,
            "--model.decoder.heads", 2,
        )  # fmt: skip
        assert fit(prepare(parse_config(settings), World())) == 0
        end = checkpoint(run, STEPS)
        optimizer = torch.load(end / "optimizer.pt", weights_only=True)["optimizer"]
        return load_file(end / "model.safetensors"), optimizer["state"]

    weights, moments = end_of("whole")
    shutil.copytree(checkpoint("whole", RESUMED_FROM), checkpoint("resumed", RESUMED_FROM))
    same_weights, same_moments = end_of("resumed")
    assert weights.keys() == same_weights.keys()
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)
    assert moments.keys() == same_moments.keys()
    assert all(torch.equal(moments[i]["exp_avg"], same_moments[i]["exp_avg"]) for i in moments)
    before = load_file(checkpoint("whole", RESUMED_FROM) / "model.safetensors")
    assert any(not torch.equal(before[name], weights[name]) for name in weights)
