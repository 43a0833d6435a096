"""Training, start to end: the one place that orders the other parts."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from pipeline.checkpoint import folder as checkpoint
from pipeline.checkpoint.background_writer import CommitWriter
from pipeline.config.parser import dump_config
from pipeline.data.batch import ImageId, check_bad
from pipeline.data.dataset import EvalDataset, TrainDataset
from pipeline.data.loader import train_loader
from pipeline.data.partition import MicroBatchSampler
from pipeline.data.sample_order import Order, keyed_bytes
from pipeline.data.worker_processes import start_worker_server
from pipeline.distributed.fault_policy import FETCH_LIMIT_S, Phase
from pipeline.distributed.process_group import join_processes
from pipeline.distributed.watchdog import Watchdog
from pipeline.evaluation.evaluator import EvaluationTask, evaluate
from pipeline.metrics.scores import caption_scores
from pipeline.observability.monitor import Monitor, log_samples, open_sample_log
from pipeline.runtime.preemption import StopRequest, answer_stop
from pipeline.training.inputs import Run
from pipeline.training.optimizer import learning_rate, make_optimizer
from pipeline.training.state import Progress, commit, load_and_wrap
from pipeline.training.step import NonFiniteError, train_step
from shards.atomic import write_atomic
from shards.format import TOKENIZER

SELECTED_BY = "CIDEr"  # the score that names the best checkpoint
MAX_SKIPPED = 25  # fp16 steps in a row: the scale begins at 2**16 and halves with each


def fit(run: Run) -> int:
    """Train to the end, or until asked to stop.

    Returns:
        The exit code: 0, or 85 where it stopped early with everything committed.
    Raises:
        NonFiniteError: the loss or gradient is not finite; the message names step and images.
    """
    config = run.config
    if config.data.workers:
        start_worker_server()
    accelerator = join_processes(run.world, config.train.precision)
    # Not before: who waits for the others to join answers no signal but by ending.
    stop = StopRequest()
    optimizer = make_optimizer(run.captioner, config.optim)
    with Watchdog(run.world) as watchdog:
        progress = _fit(accelerator, run, optimizer, stop, watchdog)
        watchdog.beat(progress.step, Phase.WAIT)
        accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0 if progress.step >= run.num_steps else answer_stop(run.world)


def _fit(
    accelerator: Accelerator,
    run: Run,
    optimizer: torch.optim.Optimizer,
    stop: StopRequest,
    watchdog: Watchdog,
) -> Progress:
    config = run.config
    model, optimizer, progress = load_and_wrap(accelerator, run, optimizer)
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
        _tidy_commits(run, monitor)
    writer = CommitWriter(
        run.checkpoints,
        config.train.keep,
        dump_config(config),
        run.train_shards.folder / TOKENIZER,
        60 * config.train.checkpoint_minutes,
    )
    try:
        with writer:
            try:
                progress = _train(
                    accelerator, run, model, optimizer, progress, monitor, stop, writer, watchdog
                )
            except BaseException:
                watchdog.await_commit()  # which the end of this block does
                raise
    finally:
        monitor.close()
    if accelerator.is_main_process and not run.val_shards and progress.step >= run.num_steps:
        _mark_best(run, {})
    return progress


def _train(
    accelerator: Accelerator,
    run: Run,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    progress: Progress,
    monitor: Monitor,
    stop: StopRequest,
    writer: CommitWriter,
    watchdog: Watchdog,
) -> Progress:
    config = run.config
    scores = checkpoint.load_scores(run.checkpoints, progress.step)
    if _evaluation_is_due(run, progress.step) and progress.step not in scores:
        # The run was ended between a commit and its evaluation.
        _evaluate(accelerator, run, model, progress.step, scores, monitor, watchdog, stop)
    if accelerator.is_main_process and scores:
        _mark_best(run, scores)  # a kill may have come between a score and its mark
    batches = iter(_make_loader(accelerator, run, progress.step))
    log_prefix = config.monitor.sample_log
    sample_log = open_sample_log(log_prefix, accelerator.process_index) if log_prefix else None
    skipped_in_a_row = 0
    monitor.restart_clock()
    while progress.step < run.num_steps:
        _seed_step(config.seed, progress.step, accelerator.process_index)
        watchdog.beat(progress.step, Phase.DATA, FETCH_LIMIT_S if run.train_shards.cache else None)
        wait_start = time.monotonic()
        micro_batches = [next(batches) for _ in range(config.train.accumulation_steps)]
        wait_s = time.monotonic() - wait_start
        ids = [image_id for batch in micro_batches for image_id in batch.ids]
        rate = learning_rate(config.optim, progress.updates, run.num_steps)
        if sample_log:  # before the step, so that no kill leaves a gap in what was consumed
            log_samples(sample_log, progress.step, ids)
        watchdog.beat(progress.step, Phase.STEP)
        try:
            result = train_step(
                accelerator, model, optimizer, micro_batches, rate, config.optim.clip, wait_s,
                stop.requested,
            )  # fmt: skip
        except NonFiniteError as error:
            raise NonFiniteError(f"step {progress.step}: {error}") from None
        skipped_in_a_row = skipped_in_a_row + 1 if result.skipped else 0
        if result.skipped:
            _report_skipped(progress.step, ids, skipped_in_a_row, monitor)
        step = progress.step + 1
        progress = Progress(
            step, progress.updates + (not result.skipped), progress.num_bad + result.num_bad
        )
        _report_bad(accelerator, run, progress, [text for b in micro_batches for text in b.bad])
        monitor.step(step, result, rate, progress.num_bad)
        last, evaluation_due = step == run.num_steps, _evaluation_is_due(run, step)
        writer.check()
        commit_due = _is_due(step, config.train.checkpoint_every) or writer.overdue()
        if last or result.stop or evaluation_due or commit_due:
            watchdog.beat(step - 1, Phase.COMMIT)
            commit(accelerator, run, model, optimizer, progress, writer)
            monitor.restart_clock()
        if last or result.stop or evaluation_due:
            writer.wait()  # before anything is said or done that takes the commit for granted
        if result.stop and not last:
            monitor.say(
                f"asked to stop: step {step:,} is committed, and the same command goes on from "
                "there"
            )
            break
        if evaluation_due:  # after the commit: whatever happens now, the training is kept
            _evaluate(accelerator, run, model, step, scores, monitor, watchdog, stop)
            monitor.restart_clock()
    return progress


def _evaluation_is_due(run: Run, step: int) -> bool:
    last = step >= run.num_steps
    return run.val_shards is not None and (last or _is_due(step, run.config.train.eval_every))


def _report_skipped(step: int, ids: Sequence[ImageId], in_a_row: int, monitor: Monitor) -> None:
    """fp16 halves its scale and skips the step when a gradient overflows: now and then, not often.

    Raises:
        NonFiniteError: it never stops overflowing.
    """
    text = f"step {step}: the fp16 gradient overflowed, weights kept; this process's images: {ids}"
    if in_a_row >= MAX_SKIPPED:
        raise NonFiniteError(f"{text}; {in_a_row} steps in a row, so the loss itself is not finite")
    monitor.say(text)


def _report_bad(accelerator: Accelerator, run: Run, progress: Progress, texts: list[str]) -> None:
    """Name the damaged samples that this process met in a step; stop where all met too many.

    Raises:
        TooManyBadError: on all ranks.
    """
    config = run.config
    for text in texts:  # each process speaks for itself
        print(f"step {progress.step - 1}: left out: {text}", file=sys.stderr, flush=True)
    consumed = progress.step * config.data.global_batch_size
    epochs_begun = -(-consumed // len(run.train_shards))
    check_bad(progress.num_bad, config.data.max_bad, epochs_begun * len(run.train_shards), texts)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _make_loader(accelerator: Accelerator, run: Run, first_step: int) -> Any:
    config, manifest = run.config, run.train_shards.manifest
    order = Order(
        tuple(shard.num_samples for shard in manifest.shards),
        manifest.digest,
        config.seed,
        config.data.shuffle_block,
        config.data.streams,
    )
    sampler = MicroBatchSampler(
        order,
        config.data.global_batch_size,
        run.num_slots,
        first_step,
        accelerator.process_index,
        accelerator.num_processes,
        config.train.accumulation_steps,
    )
    dataset = TrainDataset(run.train_shards, config.data, config.seed)
    return train_loader(
        dataset,
        sampler,
        run.world,
        run.streams,
        pin_memory=accelerator.device.type == "cuda",
    )


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout as a function of (seed, step, rank): resuming needs no generator's state."""
    torch.manual_seed(int.from_bytes(keyed_bytes(8, "dropout", seed, step, rank), "little"))


def _evaluate(
    accelerator: Accelerator,
    run: Run,
    model: nn.Module,
    step: int,
    scores: dict[int, dict[str, float]],
    monitor: Monitor,
    watchdog: Watchdog,
    stop: StopRequest,
) -> None:
    """Score the validation set at a committed step, and mark the best commit so far."""
    # Nobody may leave before the main process has the commit whole, or while it scores be past the
    # place where leaving is right.
    watchdog.beat(step - 1, Phase.COMMIT if accelerator.is_main_process else Phase.WAIT)
    accelerator.wait_for_everyone()

    def leave() -> None:
        monitor.say(
            f"asked to stop: step {step:,} is committed, and the same command goes on with its "
            "evaluation"
        )
        os._exit(answer_stop(run.world))  # others may wait for this process, which says no more

    monitor.flush()
    with stop.at_once(leave):
        _score(accelerator, run, model, step, scores, monitor, watchdog)
        watchdog.beat(step - 1, Phase.WAIT)
        accelerator.wait_for_everyone()


def _score(
    accelerator: Accelerator,
    run: Run,
    model: nn.Module,
    step: int,
    scores: dict[int, dict[str, float]],
    monitor: Monitor,
    watchdog: Watchdog,
) -> None:
    assert run.val_shards is not None
    config = run.config
    parts = accelerator.num_processes * config.train.accumulation_steps
    task = EvaluationTask(
        EvalDataset(run.val_shards, config.data.image_size),
        config.model.max_tokens,
        # As many at a time as in training, which they fit into the memory for.
        max(config.data.global_batch_size // parts, 1),
        config.data.workers,
        config.data.max_bad,
        config.monitor.num_pictures,
    )
    captioner = accelerator.unwrap_model(model)
    beat = partial(watchdog.beat, step - 1)
    evaluation = evaluate(accelerator, run.world, captioner, task, beat=beat)
    for text in evaluation.bad:
        monitor.say(f"step {step:,}: not scored: {text}")
    if not accelerator.is_main_process:
        return
    watchdog.beat(step - 1, Phase.SCORE)
    scores[step] = caption_scores(evaluation.captions, evaluation.references)
    monitor.evaluation(step, scores[step], evaluation.shown)
    checkpoint.save_scores(run.checkpoints, scores)
    _mark_best(run, scores)


def _mark_best(run: Run, scores: Mapping[int, Mapping[str, float]]) -> None:
    """Point to the commit of the best score, the earliest of equal ones; unscored, to the last."""
    found = {checkpoint.step_of(path): path for path in checkpoint.commits(run.checkpoints)}
    scored = [step for step in found if step in scores]  # a better one may have been damaged
    if scored:
        best = max(scored, key=lambda step: (scores[step][SELECTED_BY], -step))
        checkpoint.mark_best(found[best])
    elif found and not scores:
        checkpoint.mark_best(found[max(found)])


def _tidy_commits(run: Run, monitor: Monitor) -> None:
    """Put away what damage and kills left among the commits: on the main process, before training.

    By now all ranks have chosen their commit.
    """
    for path, fault in run.damaged.items():
        monitor.say(f"{fault}; passed over, and kept as {checkpoint.set_aside(path).name}")
    checkpoint.prune(run.checkpoints, run.config.train.keep)


def _first_line(accelerator: Accelerator, run: Run, progress: Progress) -> str:
    num_parameters = sum(p.numel() for p in run.captioner.parameters() if p.requires_grad)
    plural = "" if accelerator.num_processes == 1 else "es"
    backend = f", {accelerator.state.backend}" if accelerator.num_processes > 1 else ""
    precision: str = run.config.train.precision
    if precision != "fp32" and accelerator.mixed_precision == "no":
        precision = f"fp32 ({precision} is for GPUs)"
    start = f"from step {progress.step:,}" if run.commit else "from the beginning"
    if progress.step >= run.num_steps:
        start = "all done already (train.steps and train.epochs set the end)"
    return (
        f"{accelerator.num_processes} process{plural} on {accelerator.device.type}{backend}; "
        f"precision {precision}; {len(run.train_shards):,} images, digest "
        f"{run.train_shards.manifest.digest[:12]}; {num_parameters / 1e6:.1f} M parameters; "
        f"{run.num_steps:,} steps, {start}; {run.config.run_dir}"
    )
