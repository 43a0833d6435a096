"""The start of a run: the state of its checkpoint, its folder, its first line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import channels_last, nn

from pipeline.checkpoint.commit import load_optimizer_state, load_state
from pipeline.checkpoint.folder import prune, set_aside
from pipeline.checkpoint.state import TrainState
from pipeline.config.changes import shared_settings
from pipeline.objectives.cross_entropy import CrossEntropy
from pipeline.training.inputs import Run
from pipeline.training.optimizer import make_optimizer


def restore(
    accelerator: Accelerator, run: Run
) -> tuple[nn.Module, AcceleratedOptimizer, TrainState]:
    """Put model and optimiser on the device, the optimiser in the state of the checkpoint.

    Returns:
        The objective and the optimiser as accelerate wraps them, and how far the run is. The
        captioner inside the objective stays the one of the run.
    """
    captioner, checkpoint, state = run.captioner, run.resume.checkpoint, TrainState()
    factor = run.config.model.encoder.lr_factor
    optimizer = make_optimizer(captioner, run.config.optim, factor)
    if checkpoint:
        state, _ = load_state(checkpoint)
    _check_ranks_agree(run, state)
    objective = CrossEntropy(captioner, run.config.train.label_smoothing).train()
    objective.to(memory_format=channels_last)  # the layout of the images
    model, wrapped = accelerator.prepare(objective, optimizer)
    if checkpoint:
        saved = load_optimizer_state(checkpoint)
        decays = [group["weight_decay"] for group in wrapped.param_groups]
        wrapped.load_state_dict(saved["optimizer"])
        for group, decay in zip(wrapped.param_groups, decays, strict=True):
            group["weight_decay"] = decay  # a setting, not state: the configuration decides
        if accelerator.scaler is not None and "scaler" in saved:
            accelerator.scaler.load_state_dict(saved["scaler"])
    return model, wrapped, state


def _check_ranks_agree(run: Run, state: TrainState) -> None:
    if run.world.world_size == 1:
        return
    mine = {
        "step": state.step,
        "steps in all": run.num_steps,
        "data digest": run.identity.data_digest,
        "evaluated steps": sorted(run.scores.by_step),
        **shared_settings(run.config),
    }
    check_same_on_all_ranks(gather_object([mine]), run.config.run_dir, run.train_shards.location)


def check_same_on_all_ranks(
    by_rank: Sequence[Mapping[str, Any]], run_dir: str, data: Path | str
) -> None:
    """Refuse a run that its processes see differently.

    Args:
        by_rank: of each rank, what must be the same everywhere.
        run_dir, data: named in the error.
    Raises:
        RuntimeError: names the first thing that differs, with its value on each rank.
    """
    for name in by_rank[0]:
        values = [of_rank.get(name) for of_rank in by_rank]
        if any(value != values[0] for value in values):
            raise RuntimeError(
                f"the processes do not see the same run: by rank, {name} is {values}; all need the "
                f"same settings, and {run_dir} and {data} must be on storage that they share"
            )


def tidy_checkpoints(run: Run) -> list[str]:
    """Remove what damage and killed processes left, once all ranks have chosen their checkpoint.

    For the main process alone.

    Returns:
        A line for each damaged checkpoint.
    """
    lines = [
        f"{fault}; not used, and renamed to {set_aside(path).name}"
        for path, fault in run.resume.damaged.items()
    ]
    prune(run.checkpoints, run.config.train.keep)
    return lines


def first_line(accelerator: Accelerator, run: Run, state: TrainState) -> str:
    """What was started, and how: processes, device, data, model and length of the run."""
    world_size = run.world.world_size
    plural = "" if world_size == 1 else "es"
    backend = f", {accelerator.state.backend}" if world_size > 1 else ""
    precision: str = run.config.train.precision
    if precision != "fp32" and accelerator.mixed_precision == "no":
        precision = f"fp32 ({precision} is for GPUs)"
    start = f"from step {state.step:,}" if run.resume.checkpoint else "from the beginning"
    if state.step >= run.num_steps:
        start = "all done already (train.steps and train.epochs set the end)"
    return (
        f"{world_size} process{plural} on {accelerator.device.type}{backend}; "
        f"precision {precision}; {len(run.train_shards):,} images, digest "
        f"{run.identity.data_digest[:12]}; {_trained_parameters(run)}; "
        f"{run.num_steps:,} steps, {start}; {run.config.run_dir}"
    )


def _trained_parameters(run: Run) -> str:
    parameters = list(run.captioner.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad) / 1e6
    total = sum(p.numel() for p in parameters) / 1e6
    text = f"{trained:.1f} M of {total:.1f} M parameters trained"
    frozen_steps = run.schedule.frozen_steps
    return text + (f", the backbone from step {frozen_steps:,} on" if frozen_steps else "")
