"""The trainer: it owns the parts of a run and puts their work in order."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from accelerate import Accelerator

from pipeline.checkpoint.background_writer import BackgroundWriter
from pipeline.checkpoint.commit import CONFIG, RunRecord
from pipeline.checkpoint.state import TrainState
from pipeline.config.changes import changed_settings
from pipeline.config.parser import dump_config
from pipeline.data.batch import Batch, ImageId, check_bad
from pipeline.data.dataset import TrainDataset
from pipeline.data.loader import train_loader
from pipeline.data.partition import MicroBatchSampler
from pipeline.data.sample_order import Order, keyed_bytes
from pipeline.data.worker_processes import start_worker_server
from pipeline.distributed.phases import Phase
from pipeline.distributed.process_group import join_processes
from pipeline.distributed.time_limits import FETCH_LIMIT_S, FIRST_LIMIT_S
from pipeline.distributed.watchdog import Watchdog
from pipeline.observability.monitor import Monitor, StepResult
from pipeline.observability.sample_log import SampleLog
from pipeline.runtime.preemption import StopRequest, answer_stop
from pipeline.training.inputs import Run
from pipeline.training.start import first_line, restore, tidy_checkpoints
from pipeline.training.step import NonFiniteError, TrainStep
from pipeline.training.validation import Validator
from shards.atomic import write_atomic
from shards.format.names import TOKENIZER

MAX_SKIPPED = 25  # fp16 steps in a row: the scale starts at 2**16 and halves with each


def fit(run: Run) -> int:
    """Train to the end, or until asked to stop.

    Returns:
        The exit code: 0, or 85 where the run was asked to stop and committed a checkpoint.
    Raises:
        NonFiniteError: the loss or gradient is not finite; the message names step and images.
    """
    if run.config.data.workers:
        start_worker_server()  # it imports torch, meanwhile the processes join
    # A backbone that is trained later gets no gradients until then.
    some_unused = run.config.model.encoder.frozen_epochs > 0
    accelerator = join_processes(run.world, run.config.train.precision, some_unused)
    # Signals are handled from here on. A process that waits for the others to join ends at once.
    stop = StopRequest()
    with Watchdog(run.world) as watchdog:
        with Trainer(run, accelerator, watchdog, stop) as trainer:
            state = trainer.train(trainer.restored)
        with watchdog.phase(Phase.WAIT, state.step):
            accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0 if state.step >= run.num_steps else answer_stop(run.world)


class Trainer:
    """Owns the parts of a run, and orders them in `train`.

    A context manager: at its end the checkpoint under way is complete and the logs are closed.

    Args:
        run: the checked inputs.
        accelerator: of the joined processes.
        watchdog: is told what the main thread is doing.
        stop: whether the run was asked to stop.
    """

    def __init__(
        self, run: Run, accelerator: Accelerator, watchdog: Watchdog, stop: StopRequest
    ) -> None:
        self.run, self.config, self.world = run, run.config, run.world
        self.accelerator, self.watchdog, self.stop = accelerator, watchdog, stop
        self.schedule = run.schedule
        model, self.optimizer, self.restored = restore(accelerator, run)
        self.step = TrainStep(accelerator, model, self.optimizer, self.config.optim.clip)
        self.skipped_in_a_row = 0
        with ExitStack() as parts:
            self.monitor = Monitor(
                run_dir=Path(self.config.run_dir),
                active=self.world.is_main,
                first_step=self.restored.step,
                num_steps=run.num_steps,
                num_processes=self.world.world_size,
                log_every=self.config.monitor.log_every,
            )
            parts.callback(self.monitor.close)
            self.monitor.say(first_line(accelerator, run, self.restored))
            if checkpoint := run.resume.checkpoint:
                for change in changed_settings(checkpoint / CONFIG, self.config):
                    self.monitor.say(f"changed since the checkpoint: {change}")
            self.writer = parts.enter_context(self._make_writer())
            self.validator = Validator(run, accelerator, watchdog, stop, self.monitor)
            self.sample_log = SampleLog(self.config.monitor.sample_log, self.world.rank)
            self._parts = parts.pop_all()  # open from here on; closed in reverse order

    def train(self, state: TrainState) -> TrainState:
        """Train from a state to the end of the run, or until asked to stop.

        Returns:
            The state reached, which is committed.
        """
        self.validator.catch_up(state)
        with self.watchdog.phase(Phase.DATA, state.step, FIRST_LIMIT_S):
            batches = self._micro_batches(state.step)
        self.monitor.restart_clock()
        while state.step < self.run.num_steps:
            micro_batches, wait_s = self._next_batches(batches, state)
            result = self._take_step(state, micro_batches, wait_s)
            state = self._after(state, result)
            self._report(state, result, micro_batches)
            done = state.step == self.run.num_steps
            evaluation_due = self.validator.due(state.step)
            self.writer.check()
            if done or result.stop or evaluation_due:
                self._commit(state, wait=True)
            elif self._commit_due(state.step):
                self._commit(state, wait=False)
            if result.stop and not done:
                self.monitor.say(
                    f"asked to stop: step {state.step:,} is committed, and the same command "
                    "continues from there"
                )
                break
            if evaluation_due:  # after the checkpoint, so a failure here loses no training
                self.validator.evaluate(state)
                self.monitor.restart_clock()
        self.validator.finish(state)
        return state

    # ----------------------------------------------------------------------- a step's parts

    def _micro_batches(self, first_step: int) -> Iterator[Batch]:
        """This rank's micro-batches from a step to the end of the run."""
        config, manifest = self.config, self.run.train_shards.manifest
        order = Order.of(manifest, config.seed, config.data.shuffle_block, config.data.streams)
        sampler = MicroBatchSampler(
            order,
            config.data.global_batch_size,
            self.run.num_slots,
            first_step,
            self.world.rank,
            self.world.world_size,
            config.train.accumulation_steps,
        )
        dataset = TrainDataset(self.run.train_shards, config.data, config.seed)
        pin_memory = self.accelerator.device.type == "cuda"
        streams = self.run.streams
        return iter(train_loader(dataset, sampler, self.world, streams, pin_memory=pin_memory))

    def _next_batches(
        self, batches: Iterator[Batch], state: TrainState
    ) -> tuple[list[Batch], float]:
        """The micro-batches of one step, and the seconds that they were waited for."""
        limit_s = FETCH_LIMIT_S if self.run.train_shards.cache else None
        with self.watchdog.phase(Phase.DATA, state.step, limit_s):
            start = time.monotonic()
            found = [next(batches) for _ in range(self.config.train.accumulation_steps)]
            wait_s = time.monotonic() - start
        # Logged before the step, so that a kill leaves no gap in what was consumed.
        self.sample_log.write(state.step, _ids_of(found))
        return found, wait_s

    def _take_step(
        self, state: TrainState, micro_batches: Sequence[Batch], wait_s: float
    ) -> StepResult:
        _seed_step(self.config.seed, state.step, self.world.rank)
        self.run.captioner.encoder.freeze_backbone(self.schedule.backbone_frozen(state.step))
        with self.watchdog.phase(Phase.STEP, state.step):
            try:
                rate = self.schedule.learning_rate(state.updates)
                return self.step.take(micro_batches, rate, wait_s, self.stop.requested)
            except NonFiniteError as error:
                raise NonFiniteError(f"step {state.step}: {error}") from None

    def _after(self, state: TrainState, result: StepResult) -> TrainState:
        num_samples = self.run.samples_of_step(state.step)
        return state.after_step(num_samples, result.num_bad, result.skipped)

    def _report(
        self, state: TrainState, result: StepResult, micro_batches: Sequence[Batch]
    ) -> None:
        """Show a step that has been done, and end the run where too much in it is wrong."""
        step = state.step - 1
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if result.skipped else 0
        if result.skipped:
            self.monitor.say(self._describe_skip(step, _ids_of(micro_batches)))
        bad = [text for batch in micro_batches for text in batch.bad]
        for text in bad:  # every process reports the bad samples that it met itself
            print(f"step {step}: left out: {text}", file=sys.stderr, flush=True)
        num_samples = len(self.run.train_shards)
        epochs_begun = -(-state.step * self.config.data.global_batch_size // num_samples)
        check_bad(state.num_bad, self.config.data.max_bad, epochs_begun * num_samples, bad)
        rate = self.schedule.learning_rate(state.updates - (not result.skipped))
        self.monitor.step(state.step, result, rate, state.num_bad)

    def _describe_skip(self, step: int, ids: Sequence[ImageId]) -> str:
        """fp16 halves its scale and skips a step whose gradient overflows.

        This is normal now and then, but not many times in a row.


        Raises:
            NonFiniteError: every step overflows.
        """
        text = f"step {step}: the fp16 gradient overflowed, weights kept; this rank's images: {ids}"
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise NonFiniteError(
                f"{text}; {self.skipped_in_a_row} steps in a row, so the loss itself is not finite"
            )
        return text

    # -------------------------------------------------------------------------- checkpoints

    def _make_writer(self) -> BackgroundWriter:
        """Tidy the run folder, and make the writer of its checkpoints."""
        run, config = self.run, self.config
        config_yaml = dump_config(config)
        if self.world.is_main:
            write_atomic(Path(config.run_dir) / "config.yaml", config_yaml.encode())
            for text in tidy_checkpoints(run):
                self.monitor.say(text)
        record = RunRecord(run.identity, config_yaml, run.train_shards.folder / TOKENIZER)
        every_s = 60 * config.train.checkpoint_minutes
        return BackgroundWriter(run.checkpoints, record, config.train.keep, every_s)

    def _commit_due(self, step: int) -> bool:
        overdue = self.world.is_main and self.writer.overdue()
        return self.schedule.commit_due(step) or overdue

    def _commit(self, state: TrainState, wait: bool) -> None:
        """Write a checkpoint on the main process; the others wait for it in the next step.

        Args:
            wait: whether to wait until it is on the disk.
        """
        with self.watchdog.phase(Phase.COMMIT, state.step):
            if self.world.is_main:
                optimizer = {"optimizer": self.optimizer.state_dict()}
                if self.accelerator.scaler is not None:
                    optimizer["scaler"] = self.accelerator.scaler.state_dict()
                self.writer.start(state, self.run.captioner.state_dict(), optimizer)
            self.monitor.restart_clock()
            if wait:
                self.writer.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.watchdog.await_commit()
        self._parts.__exit__(kind, error, trace)


def _ids_of(micro_batches: Sequence[Batch]) -> list[ImageId]:
    return [image_id for batch in micro_batches for image_id in batch.ids]


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout a function of (seed, step, rank), so no generator's state need be saved."""
    torch.manual_seed(int.from_bytes(keyed_bytes(8, "dropout", seed, step, rank), "little"))
