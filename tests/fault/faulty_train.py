"""train.py with a fault in one process: FAULT names it, FAULT_RANK whose, FAULT_STEP when.

A process that the launcher starts again has none.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pipeline.checkpoint.commit
import pipeline.data.reader
import pipeline.evaluation.evaluator
import pipeline.observability.monitor
import pipeline.observability.sample_log
import pipeline.training.trainer
import pipeline.training.validation
from pipeline.training.step import TrainStep

STEP = int(os.environ.get("FAULT_STEP", "3"))
HOUR_S = 3600.0


def fail_with(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> Any:
        raise error

    return fail


def kill_myself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(HOUR_S)  # a stopped process goes on here, if anyone lets it


def signal_a_loader(number: int) -> None:
    loaders = [p for p in psutil.Process().children(recursive=True) if p.children() == []]
    loaders[-1].send_signal(number)


def no_space(*arguments: object, **options: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


def remove_later_shards() -> None:
    folder = Path(sys.argv[sys.argv.index("--data.train") + 1])
    for tar in folder.glob("*.tar"):
        tar.unlink()


def cut_shards() -> None:
    folder = Path(sys.argv[sys.argv.index("--data.train") + 1])
    for tar in folder.glob("*.tar"):
        os.truncate(tar, 1000)


def spoil_weights(model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters())[:] = torch.nan


# What happens at that step, before it is computed; each takes the model.
AT_STEP: dict[str, Callable[[torch.nn.Module], Any]] = {
    "killed": lambda model: kill_myself(signal.SIGKILL),
    "segfault": lambda model: kill_myself(signal.SIGSEGV),
    "stopped": lambda model: kill_myself(signal.SIGSTOP),
    "exits": lambda model: os._exit(3),
    "leaves": lambda model: sys.exit(3),
    "hangs in a step": lambda model: time.sleep(HOUR_S),
    "raises": lambda model: fail_with(RuntimeError("a wheel came off"))(),
    "out of memory": lambda model: fail_with(torch.OutOfMemoryError("CUDA out of memory"))(),
    "host out of memory": lambda model: fail_with(MemoryError("no memory"))(),
    "not finite": spoil_weights,
    "loader killed": lambda model: signal_a_loader(signal.SIGKILL),
    "loader stopped": lambda model: signal_a_loader(signal.SIGSTOP),
    "shards removed": lambda model: remove_later_shards(),
    "shards cut": lambda model: cut_shards(),
}


def spoil_loading(fault: str) -> None:
    """Faults inside the loader processes' work, here done by the process itself."""
    whole = pipeline.data.reader.ShardFolder.read
    reads = 0

    def read(self: pipeline.data.reader.ShardFolder, sample: int) -> Any:
        nonlocal reads
        reads += 1
        key, image, meta = whole(self, sample)
        if reads < 5 * STEP:
            return key, image, meta
        if fault == "hangs while loading":
            time.sleep(HOUR_S)
        if fault == "reading fails":
            raise OSError(errno.EIO, "Input/output error", str(self.folder))
        return key, image, meta | {"tokens": [[10**6]] * 5}  # "token too large"

    pipeline.data.reader.ShardFolder.read = read  # type: ignore[method-assign]


def slow_down(name: str, seconds: float) -> None:
    whole = getattr(pipeline.training.validation, name)

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return whole(*arguments)

    setattr(pipeline.training.validation, name, slow)


# Faults in a part of the program, put in before it starts.
IN_A_PART: dict[str, Callable[[], Any]] = {
    "hangs while loading": lambda: spoil_loading("hangs while loading"),
    "reading fails": lambda: spoil_loading("reading fails"),
    "token too large": lambda: spoil_loading("token too large"),
    "disk full at a commit": lambda: setattr(pipeline.checkpoint.commit, "save_file", no_space),
    "disk full at the sample log": lambda: setattr(
        pipeline.observability.sample_log.SampleLog, "write", no_space
    ),
    "captioning fails": lambda: setattr(
        pipeline.evaluation.evaluator, "generate", fail_with(RuntimeError("no words"))
    ),
    "scoring fails": lambda: setattr(
        pipeline.training.validation, "caption_scores", fail_with(ValueError("no scores"))
    ),
    "scoring takes long": lambda: slow_down("caption_scores", 45.0),
    "logging fails": lambda: setattr(pipeline.observability.monitor.Monitor, "_log", no_space),
}


def main() -> int:
    fault = os.environ["FAULT"]
    first_time = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if first_time and os.environ.get("RANK", "0") == os.environ["FAULT_RANK"]:
        if fault in IN_A_PART:
            IN_A_PART[fault]()
        else:
            take, steps = TrainStep.take, 0

            def take_or_fail(self: TrainStep, *arguments: Any) -> Any:
                nonlocal steps
                steps += 1
                if steps == STEP:
                    AT_STEP[fault](self.model)
                return take(self, *arguments)

            TrainStep.take = take_or_fail  # type: ignore[method-assign]
    from pipeline.train import main as train

    return train()


if __name__ == "__main__":
    sys.exit(main())
