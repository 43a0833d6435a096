"""Validation while training: scores of a committed step, and the best checkpoint so far."""

import os

from accelerate import Accelerator

from pipeline.checkpoint.best import mark_best, save_scores
from pipeline.checkpoint.state import TrainState
from pipeline.config.generation import used_settings
from pipeline.data.dataset import EvalDataset
from pipeline.distributed.phases import Phase
from pipeline.distributed.watchdog import Watchdog
from pipeline.evaluation.evaluator import Evaluation, EvaluationTask, evaluate
from pipeline.generation.blocks import whole_blocks
from pipeline.metrics.scores import caption_scores
from pipeline.observability.monitor import Monitor
from pipeline.runtime.preemption import StopRequest, answer_stop
from pipeline.training.inputs import Run


class Validator:
    """Captions and scores the validation set, and marks the best checkpoint."""

    def __init__(
        self,
        run: Run,
        accelerator: Accelerator,
        watchdog: Watchdog,
        stop: StopRequest,
        monitor: Monitor,
    ) -> None:
        self.run, self.accelerator = run, accelerator
        self.watchdog, self.stop, self.monitor = watchdog, stop, monitor
        self.scores = run.scores

    def due(self, step: int) -> bool:
        """Whether the validation set is scored after a step."""
        return self.run.val_shards is not None and self.run.schedule.evaluation_due(step)

    def catch_up(self, state: TrainState) -> None:
        """Do what a killed run did not: an evaluation that was due, or the mark of the best."""
        if self.due(state.step) and state.step not in self.scores.by_step:
            self.evaluate(state)
        if self.run.world.is_main and self.scores.by_step:
            mark_best(self.run.checkpoints, self.scores)

    def evaluate(self, state: TrainState) -> None:
        """Score the validation set at a committed step.

        A stop request ends the process at once meanwhile: an evaluation may take longer than a
        scheduler waits, and the next start repeats it.
        """

        def leave() -> None:
            try:
                self.monitor.say(
                    f"asked to stop: step {state.step:,} is committed, and the same command "
                    "continues with its evaluation"
                )
            finally:  # also where the signal came in the middle of a print, or nobody reads it
                os._exit(answer_stop(self.run.world))  # other processes may wait for this one

        # No process may leave before the checkpoint is complete, nor be left scoring alone.
        is_main = self.run.world.is_main
        with self.watchdog.phase(Phase.COMMIT if is_main else Phase.WAIT, state.step):
            self.accelerator.wait_for_everyone()
        self.monitor.flush()
        with self.stop.at_once(leave):
            evaluation = self._caption(state)
            if is_main:
                with self.watchdog.phase(Phase.SCORE, state.step):
                    self._score(evaluation, state)
            with self.watchdog.phase(Phase.WAIT, state.step):
                self.accelerator.wait_for_everyone()

    def finish(self, state: TrainState) -> None:
        """In a complete run without any evaluation the last checkpoint is the best one."""
        complete = state.step >= self.run.num_steps
        if self.run.world.is_main and self.run.val_shards is None and complete:
            mark_best(self.run.checkpoints, self.scores)

    def _caption(self, state: TrainState) -> Evaluation:
        run, config = self.run, self.run.config
        assert run.val_shards is not None
        parts = run.world.world_size * config.train.accumulation_steps
        task = EvaluationTask(
            EvalDataset(run.val_shards, config.data.image_size),
            config.generation,
            # About as many images at a time as in training. They are encoded in blocks, which on
            # a GPU may hold more of them; without gradients that takes less memory.
            whole_blocks(config.data.global_batch_size // parts, self.accelerator.device),
            config.data.workers,
            config.data.max_bad,
            config.monitor.num_images,
        )
        evaluation = evaluate(
            self.accelerator, run.world, run.captioner, task, self.watchdog, state.step
        )
        for text in evaluation.bad:
            self.monitor.say(f"step {state.step:,}: not scored: {text}")
        return evaluation

    def _score(self, evaluation: Evaluation, state: TrainState) -> None:
        assert self.run.val_shards is not None
        scores = caption_scores(evaluation.captions, evaluation.references)
        digest, generation = self.run.val_shards.manifest.digest, self.run.config.generation
        self.scores = self.scores.after(state.step, scores, digest, used_settings(generation))
        self.monitor.evaluation(state.step, scores, evaluation.shown)
        save_scores(self.run.checkpoints, self.scores)
        mark_best(self.run.checkpoints, self.scores)
