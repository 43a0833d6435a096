"""Commits written beside the training, which waits for a copy to host memory and no longer."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError

from pipeline.checkpoint import folder as checkpoint
from pipeline.runtime.errors import ExplainedError


class CommitError(ExplainedError, RuntimeError):
    """The disk did not take a commit."""


class CommitWriter:
    """Writes a run's commits one at a time, and deletes older ones.

    A commit that fails ends the run: `check` raises its error, and so do `start`, `wait` and the
    end of the `with` block, all of which first wait for the commit under way. Made on every rank,
    used on the main process.

    Args:
        checkpoints: folder of the commits.
        keep: commits kept, the newest; the best one is kept besides.
        config: the run's configuration as YAML.
        tokenizer: file that each commit gets a copy of.
        every_s: seconds from the start of one commit until the next is overdue; 0 never.
    """

    def __init__(
        self, checkpoints: Path, keep: int, config: str, tokenizer: Path, every_s: float
    ) -> None:
        self._checkpoints = checkpoints
        self._keep = keep
        self._config = config
        self._tokenizer = tokenizer
        self._every_s = every_s
        self._last_start = time.monotonic()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def overdue(self) -> bool:
        """Whether the last commit, or the run's start, is longer ago than a commit may be."""
        return 0 < self._every_s <= time.monotonic() - self._last_start

    def start(
        self, state: dict[str, Any], model: Mapping[str, Any], optimizer: Mapping[str, Any]
    ) -> None:
        """Copy the state, and write it from now on. The arguments are `checkpoint.commit`'s.

        Raises:
            RuntimeError: the commit before this one failed.
        """
        self.wait()
        self._last_start = time.monotonic()
        copies = (dict(state), _host_copy(model), _host_copy(optimizer))
        # Not a daemon: whatever ends the main thread, the process lives until the commit is whole.
        self._thread = threading.Thread(target=self._write, args=copies, name="commit")
        self._thread.start()

    def check(self) -> None:
        """Raise what a commit has failed of, if one has; waits for nothing.

        Raises:
            RuntimeError: names the folder; its cause is the error itself.
        """
        if self._failure is not None:
            from_outside = isinstance(self._failure, (OSError, SafetensorError))
            kind = CommitError if from_outside else RuntimeError
            raise kind(self._failed()) from self._failure

    def wait(self) -> None:
        """Wait until the commit under way, if any, is on the disk. Raises as `check` does."""
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
            error.add_note(self._failed())  # the first of two faults keeps its name

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _failed(self) -> str:
        return (
            f"{self._checkpoints}: a commit could not be written ({self._failure}); those before "
            "it are as they were, and once the cause is mended the same command goes on from the "
            "newest"
        )

    def _write(
        self, state: dict[str, Any], model: dict[str, torch.Tensor], optimizer: dict[str, Any]
    ) -> None:
        try:
            checkpoint.commit(
                self._checkpoints, state, model, optimizer, self._config, self._tokenizer
            )
            checkpoint.prune(self._checkpoints, self._keep)
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
