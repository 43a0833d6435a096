"""Training, start to end: the one place that orders the other parts."""

import math
import os
import signal
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import nn

from pipeline import checkpoint
from pipeline.config import Config, dump_config, load_config
from pipeline.data import EvalDataset, ShardFolder, TrainDataset
from pipeline.evaluate import Evaluation, evaluate
from pipeline.exits import STOP_SIGNALS, STOPPED
from pipeline.loader import start_worker_server, train_loader
from pipeline.metrics import caption_scores
from pipeline.model.captioner import Captioner
from pipeline.monitor import Monitor, log_samples, open_sample_log
from pipeline.optim import learning_rate, make_optimizer
from pipeline.order import ALGORITHM, MicroBatchSampler, Order, keyed_bytes
from pipeline.processes import join_processes
from pipeline.step import NonFiniteError, train_step
from shards.atomic import write_atomic
from shards.format import TOKENIZER

SELECTED_BY = "CIDEr"  # the score that names the best checkpoint


@dataclass(frozen=True)
class Run:
    """A run whose inputs have been read and found to fit."""

    config: Config
    train_shards: ShardFolder
    val_shards: ShardFolder | None
    captioner: Captioner
    commit: Path | None  # where it goes on from
    num_slots: int  # positions of the sample sequence that it consumes
    num_steps: int

    @property
    def checkpoints(self) -> Path:
        """Folder of the commits."""
        return Path(self.config.run_dir) / "checkpoints"


@dataclass(frozen=True)
class Progress:
    """How far a run is: what state.json keeps of it."""

    step: int = 0  # global batches consumed
    updates: int = 0  # optimiser steps taken: fewer, where fp16 skipped some
    best_score: float | None = None


# ------------------------------------------------------------------------------------- preparation


def prepare(config: Config) -> Run:
    """Read everything that a user can have got wrong, before any process group or GPU starts.

    Raises:
        ValueError: names the folder or the setting at fault.
    """
    train_shards = ShardFolder(Path(config.data.train))
    val_shards = ShardFolder(Path(config.data.val)) if config.data.val else None
    digest = train_shards.manifest.tokenizer_sha256
    if val_shards and val_shards.manifest.tokenizer_sha256 != digest:
        raise ValueError(
            f"{config.data.val}: built with another tokenizer than {config.data.train}; build "
            "both with the same tokenizer.json"
        )
    if config.model.encoder.batch_norm == "sync" and not torch.cuda.is_available():
        raise ValueError("model.encoder.batch_norm: `sync` needs GPUs")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    parts = world_size * config.train.accumulation_steps
    if config.data.global_batch_size <= parts and config.model.encoder.batch_norm != "frozen":
        raise ValueError(
            f"data.global_batch_size: {config.data.global_batch_size} over {parts} parts is one "
            "image each, and batch normalisation cannot train on one"
        )
    commit = _commit_to_resume(config, train_shards)
    torch.manual_seed(config.seed)
    captioner = Captioner(
        config.model, train_shards.tokenizer.get_vocab_size(), pretrained=commit is None
    )
    epochs, steps = config.train.epochs, config.train.steps
    batch_size = config.data.global_batch_size
    num_slots = min(
        math.inf if epochs is None else epochs * len(train_shards),
        math.inf if steps is None else steps * batch_size,
    )
    return Run(
        config=config,
        train_shards=train_shards,
        val_shards=val_shards,
        captioner=captioner,
        commit=commit,
        num_slots=int(num_slots),
        num_steps=-(-int(num_slots) // batch_size),
    )


def _commit_to_resume(config: Config, shards: ShardFolder) -> Path | None:
    """The newest commit of the run folder, checked to continue this very run."""
    commits = list(checkpoint.commits(Path(config.run_dir) / "checkpoints"))
    if not commits:
        return None
    newest = commits[-1]
    if config.train.resume == "never":
        raise ValueError(
            f"run_dir: {config.run_dir} holds checkpoints already; name another folder, or "
            "say train.resume auto to go on from them"
        )
    checkpoint.check_commit(newest)
    state, old = checkpoint.load_state(newest), load_config(newest / checkpoint.CONFIG)
    if state["tokenizer_sha256"] != shards.manifest.tokenizer_sha256:
        raise ValueError(f"data.train: {shards.folder} has another tokenizer than {newest}")
    comparisons: list[tuple[str, Any, Any]] = [
        ("data.train (the data set's digest)", state["digest"], shards.manifest.digest),
        ("the sample order's version", state["algorithm"], ALGORITHM),
        ("seed", old.seed, config.seed),
        ("data.global_batch_size", old.data.global_batch_size, config.data.global_batch_size),
        ("data.shuffle_block", old.data.shuffle_block, config.data.shuffle_block),
        # Weights come from the commit, wherever they came from at first.
        ("model", _without_weights(old), _without_weights(config)),
    ]
    for what, then, now in comparisons:
        if then != now:
            raise ValueError(
                f"{newest}: was trained with another value of {what} ({then}, now {now}); to "
                "train anew name another run_dir"
            )
    return newest


def _without_weights(config: Config) -> dict[str, Any]:
    model = asdict(config.model)
    model["encoder"]["weights"] = model["encoder"]["weights"] is not None
    return model


# ---------------------------------------------------------------------------------------- training


def fit(run: Run) -> int:
    """Train to the end, or until asked to stop.

    Returns:
        The exit code: 0, or 85 where it stopped early with everything committed.
    Raises:
        NonFiniteError: the loss or gradient is not finite; the message names step and images.
    """
    stop = _StopRequest()
    config = run.config
    if config.data.workers:
        start_worker_server()
    accelerator = join_processes(config.train.precision)
    optimizer = make_optimizer(run.captioner, config.optim, accelerator.device.type == "cuda")
    model, optimizer, progress = _load_and_wrap(accelerator, run, optimizer)
    monitor = Monitor(
        Path(config.run_dir),
        accelerator.is_main_process,
        progress.step,
        run.num_steps,
        accelerator.num_processes,
        config.monitor.log_every,
    )
    monitor.say(_first_line(accelerator, run, progress))
    if accelerator.is_main_process:
        write_atomic(Path(config.run_dir) / "config.yaml", dump_config(config).encode())
    try:
        progress = _train(accelerator, run, model, optimizer, progress, monitor, stop)
    finally:
        monitor.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0 if progress.step == run.num_steps else STOPPED


def _train(
    accelerator: Accelerator,
    run: Run,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    progress: Progress,
    monitor: Monitor,
    stop: "_StopRequest",
) -> Progress:
    config = run.config
    batches = iter(_make_loader(accelerator, run, progress.step))
    log_prefix = config.monitor.sample_log
    sample_log = open_sample_log(log_prefix, accelerator.process_index) if log_prefix else None
    monitor.restart_clock()
    while progress.step < run.num_steps:
        _seed_step(config.seed, progress.step, accelerator.process_index)
        wait_start = time.monotonic()
        micro_batches = [next(batches) for _ in range(config.train.accumulation_steps)]
        wait_s = time.monotonic() - wait_start
        rate = learning_rate(config.optim, progress.updates, run.num_steps)
        try:
            result = train_step(
                accelerator,
                model,
                optimizer,
                micro_batches,
                rate,
                config.optim.clip,
                wait_s,
                stop.requested,
            )
        except NonFiniteError as error:
            raise NonFiniteError(f"step {progress.step}: {error}") from None
        if sample_log:
            log_samples(sample_log, progress.step, [i for b in micro_batches for i in b.ids])
        progress = replace(
            progress, step=progress.step + 1, updates=progress.updates + (not result.skipped)
        )
        monitor.step(progress.step, result, rate)
        last = progress.step == run.num_steps
        scored_best = False
        if run.val_shards and (last or _is_due(progress.step, config.train.eval_every)):
            progress, scored_best = _evaluate(accelerator, run, model, progress, monitor)
        if (
            last
            or result.stop
            or scored_best
            or _is_due(progress.step, config.train.checkpoint_every)
        ):
            _commit(accelerator, run, model, optimizer, progress, scored_best)
            monitor.restart_clock()
        if result.stop and not last:
            monitor.say(
                f"asked to stop: step {progress.step:,} is committed, and the same command goes on "
                "from there"
            )
            break
    return progress


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _load_and_wrap(
    accelerator: Accelerator, run: Run, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer, Progress]:
    """Put model and optimiser on the device, in the state of the commit, wrapped for DDP."""
    progress = Progress()
    if run.commit:
        run.captioner.load_state_dict(checkpoint.load_model_state(run.commit))
        state = checkpoint.load_state(run.commit)
        progress = Progress(state["step"], state["updates"], state["best_score"])
    _check_ranks_agree(accelerator, run, progress.step)
    run.captioner.train().to(memory_format=torch.channels_last)  # how the pictures come
    model, wrapped = accelerator.prepare(run.captioner, optimizer)
    if run.commit:
        saved = checkpoint.load_optimizer_state(run.commit)
        wrapped.load_state_dict(saved["optimizer"])
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
            f"{seen}; {run.config.run_dir} and {run.train_shards.folder} must be the same "
            "everywhere, on shared storage"
        )


def _make_loader(accelerator: Accelerator, run: Run, first_step: int) -> Any:
    config, manifest = run.config, run.train_shards.manifest
    order = Order(
        tuple(shard.num_samples for shard in manifest.shards),
        manifest.digest,
        config.seed,
        config.data.shuffle_block,
    )
    sampler = MicroBatchSampler(
        order,
        config.data.global_batch_size,
        run.num_slots,
        first_step,
        run.num_steps,
        accelerator.process_index,
        accelerator.num_processes,
        config.train.accumulation_steps,
    )
    dataset = TrainDataset(run.train_shards, config.data, config.seed)
    return train_loader(
        dataset, sampler, config.data.workers, pin_memory=accelerator.device.type == "cuda"
    )


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout as a function of (seed, step, rank): resuming needs no generator's state."""
    torch.manual_seed(int.from_bytes(keyed_bytes(8, "dropout", seed, step, rank), "little"))


def _evaluate(
    accelerator: Accelerator, run: Run, model: nn.Module, progress: Progress, monitor: Monitor
) -> tuple[Progress, bool]:
    """Score the validation set. Returns progress, and whether this is the best step so far."""
    assert run.val_shards is not None
    config = run.config
    evaluation = evaluate(
        accelerator,
        accelerator.unwrap_model(model),
        EvalDataset(run.val_shards, config.data.image_size),
        run.val_shards.tokenizer,
        config.model.max_tokens,
        max(config.data.global_batch_size // accelerator.num_processes, 1),
        config.data.workers,
        config.monitor.num_pictures,
    )
    scores = _scores_on_all_ranks(accelerator, evaluation)
    monitor.evaluation(progress.step, scores, evaluation.pictures)
    monitor.restart_clock()
    score = scores[SELECTED_BY]
    if progress.best_score is None or score > progress.best_score:
        return replace(progress, best_score=score), True
    return progress, False


def _scores_on_all_ranks(accelerator: Accelerator, evaluation: Evaluation) -> dict[str, float]:
    """The main process scores; all must know, since they decide together whether to commit."""
    scores: list[dict[str, float]] = []
    if accelerator.is_main_process:
        scores = [caption_scores(evaluation.captions, evaluation.references)]
    return (gather_object(scores) if accelerator.num_processes > 1 else scores)[0]


def _commit(
    accelerator: Accelerator,
    run: Run,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    progress: Progress,
    is_best: bool,
) -> None:
    """Write a checkpoint: the main process does, the others meet it again in the next step."""
    if not accelerator.is_main_process:
        return
    manifest = run.train_shards.manifest
    state = {
        **asdict(progress),
        "digest": manifest.digest,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "algorithm": ALGORITHM,
        "seed": run.config.seed,
        "global_batch_size": run.config.data.global_batch_size,
        "samples_consumed": min(progress.step * run.config.data.global_batch_size, run.num_slots),
    }
    optimizer_state = {"optimizer": optimizer.state_dict()}
    if accelerator.scaler is not None:
        optimizer_state["scaler"] = accelerator.scaler.state_dict()
    path = checkpoint.commit(
        run.checkpoints,
        state,
        accelerator.unwrap_model(model).state_dict(),
        optimizer_state,
        dump_config(run.config),
        run.train_shards.folder / TOKENIZER,
    )
    if is_best or (run.val_shards is None and progress.step == run.num_steps):
        checkpoint.mark_best(path)
    checkpoint.prune(run.checkpoints, run.config.train.keep)


def _first_line(accelerator: Accelerator, run: Run, progress: Progress) -> str:
    num_parameters = sum(p.numel() for p in run.captioner.parameters() if p.requires_grad)
    plural = "" if accelerator.num_processes == 1 else "es"
    backend = f", {accelerator.state.backend}" if accelerator.num_processes > 1 else ""
    wanted = run.config.train.precision
    precision: str = wanted
    if accelerator.mixed_precision != wanted:
        precision = f"float32 ({wanted} is for GPUs)"
    start = f"from step {progress.step:,}" if run.commit else "from the beginning"
    return (
        f"{accelerator.num_processes} process{plural} on {accelerator.device.type}{backend}; "
        f"precision {precision}; {len(run.train_shards):,} images, digest "
        f"{run.train_shards.manifest.digest[:12]}; {num_parameters / 1e6:.1f} M parameters; "
        f"{run.num_steps:,} steps, {start}; {run.config.run_dir}"
    )


class _StopRequest:
    """Remembers that a signal asked to stop; the step under way ends first."""

    def __init__(self) -> None:
        self.requested = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.requested = True
