"""How far a run is, and how that, weights and all, goes into a commit and comes out of it."""

from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import nn

from pipeline.checkpoint import folder as checkpoint
from pipeline.checkpoint.background_writer import CommitWriter
from pipeline.data.sample_order import ALGORITHM
from pipeline.training.inputs import Run


@dataclass(frozen=True)
class Progress:
    """How far a run is: what state.json keeps of it."""

    step: int = 0  # global batches consumed
    updates: int = 0  # optimiser steps taken: fewer, where fp16 skipped some
    num_bad: int = 0  # damaged samples left out so far


def load_and_wrap(
    accelerator: Accelerator, run: Run, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer, Progress]:
    """Put model and optimiser on the device, in the state of the commit, wrapped for DDP."""
    progress = Progress()
    if run.commit:
        run.captioner.load_state_dict(checkpoint.load_model_state(run.commit))
        state = checkpoint.load_state(run.commit)
        progress = Progress(state["step"], state["updates"], state.get("num_bad", 0))
    _check_ranks_agree(accelerator, run, progress.step)
    run.captioner.train().to(memory_format=torch.channels_last)  # how the pictures come
    model, wrapped = accelerator.prepare(run.captioner, optimizer)
    if run.commit:
        saved = checkpoint.load_optimizer_state(run.commit)
        decays = [group["weight_decay"] for group in wrapped.param_groups]
        wrapped.load_state_dict(saved["optimizer"])
        for group, decay in zip(wrapped.param_groups, decays, strict=True):
            group["weight_decay"] = decay  # a setting, not state: the configuration's counts
        if accelerator.scaler is not None and "scaler" in saved:
            accelerator.scaler.load_state_dict(saved["scaler"])
    return model, wrapped, progress


def _check_ranks_agree(accelerator: Accelerator, run: Run, step: int) -> None:
    if accelerator.num_processes == 1:
        return
    seen = gather_object([(step, run.train_shards.manifest.digest)])
    if len(set(seen)) > 1:
        raise RuntimeError(
            "the processes do not see the same run: (step, data digest) by rank is "
            f"{seen}; {run.config.run_dir} and {run.train_shards.location} must be the same "
            "everywhere, on shared storage"
        )


def commit(
    accelerator: Accelerator,
    run: Run,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    progress: Progress,
    writer: CommitWriter,
) -> None:
    """Write a checkpoint: the main process does, the others meet it again in the next step."""
    if not accelerator.is_main_process:
        return
    manifest = run.train_shards.manifest
    state = {
        **asdict(progress),
        "digest": manifest.digest,
        "val_digest": run.val_digest,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "algorithm": ALGORITHM,
        "seed": run.config.seed,
        "global_batch_size": run.config.data.global_batch_size,
        "samples_consumed": min(progress.step * run.config.data.global_batch_size, run.num_slots),
    }
    optimizer_state = {"optimizer": optimizer.state_dict()}
    if accelerator.scaler is not None:
        optimizer_state["scaler"] = accelerator.scaler.state_dict()
    writer.start(state, accelerator.unwrap_model(model).state_dict(), optimizer_state)
