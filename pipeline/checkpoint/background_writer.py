"""Writes checkpoints in a thread, while the training continues."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError

from pipeline.checkpoint.commit import RunRecord, commit
from pipeline.checkpoint.folder import prune
from pipeline.checkpoint.state import TrainState
from pipeline.runtime.errors import ExplainedError


class CommitError(ExplainedError, RuntimeError):
    """A checkpoint could not be written to the disk."""


class BackgroundWriter:
    """Writes a run's checkpoints one at a time, and deletes older ones.

    The training waits only until the state is copied to host memory. A checkpoint that cannot be
    written ends the run: `check` raises its error, and so do `start`, `wait` and the end of the
    `with` block, which first wait for the checkpoint under way. It is made on every rank and used
    on the main process.

    Args:
        checkpoints: folder of the run's checkpoints.
        record: what all of them have in common.
        keep: how many of the newest are kept; the best one is kept besides.
        every_s: seconds from the start of one checkpoint until the next is overdue; 0 never.
    """

    def __init__(self, checkpoints: Path, record: RunRecord, keep: int, every_s: float) -> None:
        self._checkpoints = checkpoints
        self._record = record
        self._keep = keep
        self._every_s = every_s
        self._last_start = time.monotonic()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def overdue(self) -> bool:
        """Whether `every_s` have passed since the last checkpoint or the start of the run."""
        return 0 < self._every_s <= time.monotonic() - self._last_start

    def start(
        self, state: TrainState, model: Mapping[str, Any], optimizer: Mapping[str, Any]
    ) -> None:
        """Copy the state and begin to write it. The arguments are those of `commit`.

        Raises:
            RuntimeError: the checkpoint before this one could not be written.
        """
        self.wait()
        self._last_start = time.monotonic()
        copies = (state, _host_copy(model), _host_copy(optimizer))
        # Not a daemon thread: the process lives until the checkpoint is complete, whatever ends the
        # main thread.
        self._thread = threading.Thread(target=self._write, args=copies, name="commit")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written; does not wait.

        Raises:
            RuntimeError: names the folder; its cause is the original error.
        """
        if self._failure is not None:
            from_outside = isinstance(self._failure, (OSError, SafetensorError))
            kind = CommitError if from_outside else RuntimeError
            raise kind(self._failed()) from self._failure

    def wait(self) -> None:
        """Wait until the checkpoint under way, if any, is on the disk. Raises like `check`."""
        self._join()
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._join()
        if error is None:
            self.check()
        elif self._failure is not None and error.__cause__ is not self._failure:
            error.add_note(self._failed())  # the error that came first stays the main one

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _failed(self) -> str:
        return (
            f"{self._checkpoints}: a checkpoint could not be written ({self._failure}); earlier "
            "checkpoints are unchanged. Remove the cause and start the same command again: it "
            "continues from the newest checkpoint"
        )

    def _write(
        self, state: TrainState, model: dict[str, torch.Tensor], optimizer: dict[str, Any]
    ) -> None:
        try:
            commit(self._checkpoints, self._record, state, model, optimizer)
            prune(self._checkpoints, self._keep)
        except BaseException as error:  # the main thread raises it
            self._failure = error


def _host_copy(value: Any) -> Any:
    """The same nested mappings, lists and tuples, with a copy of each tensor in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _host_copy(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_host_copy(part) for part in value)
    return value
