"""TensorBoard and the console line of a training run, on the main process."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from pipeline.observability.contact_sheet import Captioned, draw_sheet

CONSOLE_EVERY_S = 10.0  # seconds between lines where the output is not a terminal


@dataclass(frozen=True)
class StepResult:
    """What one step did, the same on all ranks."""

    loss: float  # nats a token, over the global batch
    grad_norm: float  # before clipping
    num_images: int
    num_terms: int  # of the loss: tokens, for cross-entropy
    num_bad: int  # bad samples left out
    wait_s: float  # seconds spent waiting for data, mean over the ranks
    skipped: bool  # fp16 only: the gradient overflowed and the weights stayed
    stop: bool  # some rank was asked to stop
    # What else the objective logs, by name, as means over the global batch like the loss.
    logged: Mapping[str, float] = field(default_factory=dict)


class Monitor:
    """Collects the results of steps, and shows their means every `log_every` steps.

    It is made on every rank; where `active` is false it shows nothing.
    """

    def __init__(
        self,
        run_dir: Path,
        active: bool,
        first_step: int,
        num_steps: int,
        num_processes: int,
        log_every: int,
    ) -> None:
        self.active = active
        self.num_steps = num_steps
        self.num_processes = num_processes
        self.log_every = log_every
        self._results: list[StepResult] = []
        self._window_s = 0.0  # that the steps of the window took
        self._last = time.monotonic()
        self._console_s = 0.0
        self._line_open = False
        if active:  # hides what a killed run logged after its last checkpoint: it is done again
            purge = first_step + 1 if first_step else None
            self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)

    def say(self, text: str) -> None:
        """Print a line."""
        if self.active:
            self._end_line()
            print(text, flush=True)

    def step(self, step: int, result: StepResult, learning_rate: float, num_bad: int) -> None:
        """Add the result of a step.

        Args:
            step: steps done so far.
            num_bad: bad samples left out so far.
        """
        if not self.active:
            return
        now = time.monotonic()
        self._window_s += now - self._last
        self._last = now
        self._results.append(result)
        if step % self.log_every == 0 or step == self.num_steps:
            self._log(step, learning_rate, num_bad)

    def _log(self, step: int, learning_rate: float, num_bad: int) -> None:
        seconds = max(self._window_s, 1e-9)
        results = self._results
        norms = [r.grad_norm for r in results if not r.skipped]
        num_terms = sum(r.num_terms for r in results)
        loss = sum(r.loss * r.num_terms for r in results) / max(num_terms, 1)
        logged = {
            f"train/{name}": sum(r.logged[name] * r.num_terms for r in results) / max(num_terms, 1)
            for name in results[0].logged
        }
        images_per_s = sum(r.num_images for r in results) / seconds
        wait_share = sum(r.wait_s for r in results) / seconds
        scalars = {
            "train/loss": loss,
            **logged,
            "train/learning_rate": learning_rate,
            "speed/images_per_s": images_per_s,
            "speed/images_per_s_per_process": images_per_s / self.num_processes,
            "speed/tokens_per_s": num_terms / seconds,
            "speed/tokens_per_s_per_process": num_terms / seconds / self.num_processes,
            "speed/data_wait_share": wait_share,
            "train/skipped_steps": float(sum(r.skipped for r in results)),
            "data/bad_samples": float(num_bad),
        }
        if norms:  # that of a skipped step is not finite
            scalars["train/gradient_norm"] = sum(norms) / len(norms)
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self._progress(
            f"step {step:,}/{self.num_steps:,}  loss {loss:.3f}  lr {learning_rate:.2e}  "
            f"{images_per_s:,.0f} images/s  waiting for data {wait_share:.0%}",
            last=step == self.num_steps,
        )
        self._results, self._window_s = [], 0.0

    def restart_clock(self) -> None:
        """Leave out the time since the last step: an evaluation or a checkpoint took it."""
        self._last = time.monotonic()

    def evaluation(self, step: int, scores: dict[str, float], images: Sequence[Captioned]) -> None:
        """Show scores, and images with their captions."""
        if not self.active:
            return
        for name, value in scores.items():
            self.writer.add_scalar(f"eval/{name}", value, step)
        if images:
            sheet = np.asarray(draw_sheet(images))
            self.writer.add_image("captions", sheet, step, dataformats="HWC")
        self.writer.flush()
        line = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self.say(f"step {step:,}: {line}")

    def flush(self) -> None:
        """Write to disk what TensorBoard has buffered."""
        if self.active:
            self.writer.flush()

    def close(self) -> None:
        """End the line that is open, and close the TensorBoard file."""
        if self.active:
            self._end_line()
            self.writer.close()

    def _progress(self, line: str, last: bool) -> None:
        if sys.stdout.isatty():
            print(f"\r\x1b[K{line}", end="", flush=True)
            self._line_open = True
        elif last or time.monotonic() - self._console_s > CONSOLE_EVERY_S:
            print(line, flush=True)
            self._console_s = time.monotonic()

    def _end_line(self) -> None:
        if self._line_open:
            print(flush=True)
            self._line_open = False
