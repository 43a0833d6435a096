"""Checkpoints of no particular run, for tests of how they are written and chosen."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.checkpoint.commit import RunRecord, commit
from pipeline.checkpoint.identity import RunIdentity
from pipeline.checkpoint.state import TrainState

STATE = TrainState(step=3, updates=3, num_bad=1, samples_consumed=30)


def make_identity(**fields: object) -> RunIdentity:
    values = {
        "data_digest": "d", "tokenizer_sha256": "t", "sample_order": 1, "seed": 0,
        "global_batch_size": 10, "shuffle_block": 4, "streams": 1, "model": {"model.dim": 8},
    }  # fmt: skip
    return RunIdentity(**{**values, **fields})  # type: ignore[arg-type]


def make_record(tokenizer: Path, config: str = "seed: 0\n") -> RunRecord:
    return RunRecord(make_identity(), config, tokenizer)


def write_checkpoint(run_dir: Path, state: TrainState) -> Path:
    """A checkpoint of one tensor in a run folder, which must exist."""
    (run_dir / "words").write_text("{}")
    tensors = {"weight": torch.zeros(1)}
    return commit(run_dir / "checkpoints", make_record(run_dir / "words"), state, tensors, {})


def draw_weights(checkpoint: Path, scale: float = 1.0) -> None:
    """Draw the matrices of a captioner anew, so that its captions differ from image to image."""
    model = checkpoint / "model.safetensors"
    draw = torch.Generator().manual_seed(0)
    drawn = {
        name: scale * torch.randn(weight.shape, generator=draw) if weight.ndim == 2 else weight
        for name, weight in load_file(model).items()
    }
    save_file(drawn, model)
    files = json.loads((checkpoint / "files.json").read_text())
    files[model.name] = hashlib.sha256(model.read_bytes()).hexdigest()
    (checkpoint / "files.json").write_text(json.dumps(files))
