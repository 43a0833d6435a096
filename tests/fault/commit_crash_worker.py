"""Cuts a process at every step of its commits; run by test_commit_crash.py.

    python commit_crash_worker.py FOLDER MODE [FIRST STRIDE]

MODE is what happens before the k-th operation, for every k (from FIRST on, each STRIDE-th): `exit`
(the process is no more), or `ENOSPC`, `EIO`, `EROFS` (it fails, and so does all that follows).
`fresh` is `exit` in a folder without commits. `kill` and `short` let the kernel cut each file in
the middle of a write: by a signal, or with an error.

Prints how many cases came to what, or cut which file, as JSON.

Children are forked from this process, which has one thread and torch loaded: a case takes a few
milliseconds instead of seconds. Nothing is really synced: no test here can cut the power.
"""

import collections
import errno
import itertools
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/support

from support.checkpoints import make_record

from pipeline.checkpoint import commit as checkpoint
from pipeline.checkpoint.background_writer import BackgroundWriter
from pipeline.checkpoint.best import Scores, load_scores, mark_best, save_scores
from pipeline.checkpoint.folder import list_checkpoints, prune
from pipeline.checkpoint.state import TrainState

COUNTED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.fsync")
LAST_STEP = 4
NAMED, NOT_REACHED, UNNAMED, GONE = 10, 11, 12, 13  # exit codes of a child


def write_commits(folder: Path, tokenizer: Path) -> None:
    """Steps 2 to 4 over an earlier 1, with a best one and old ones deleted; or the first, 2."""
    last_step = LAST_STEP if folder.exists() else 2
    record = make_record(tokenizer, "seed: 0\n" * 100)
    with BackgroundWriter(folder, record, 1, every_s=0) as writer:
        for step in range(2, last_step + 1):
            writer.start(TrainState(step=step), *tensors(step))
            writer.wait()
            if step == 2:
                scores = Scores("v", {2: {"CIDEr": 1.0}})
                save_scores(folder, scores)
                mark_best(folder, scores)


def tensors(step: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    weight = torch.full((64,), float(step))
    return {"weight": weight}, {"optimizer": {"state": {0: {"exp_avg": weight / 2}}}}


class Faults:
    """Calls `fault` before the `number`-th operation in `folder`, and before all that follow."""

    def __init__(self, folder: Path, number: int, fault: Callable[[str | None], None]) -> None:
        self.folder, self.number, self.fault = str(folder), number, fault
        self.seen: list[str] = []

    def install(self) -> None:
        sys.addaudithook(self.note)
        os.fsync = lambda descriptor: self.note("os.fsync", (self.folder,))  # type: ignore
        save_file = checkpoint.save_file

        def save(tensors: object, path: Path) -> None:  # written by Rust: no audit event
            self.note("open", (str(path), "w", 0))
            save_file(tensors, path)

        checkpoint.save_file = save

    def note(self, event: str, arguments: tuple) -> None:
        if event not in COUNTED or not arguments or isinstance(arguments[0], int):
            return
        path = os.fspath(arguments[1 if event == "os.symlink" else 0])
        if path.startswith("/") and not path.startswith(self.folder):  # relative: rmtree's
            return
        self.seen.append(event)
        if len(self.seen) > self.number:
            self.fault(None if event == "os.fsync" else path)  # as the kernel's errors tell it


class Limits(Faults):
    """Lets the file `name` of step 3 grow to `size` bytes only."""

    def __init__(self, folder: Path, name: str, size: int) -> None:
        super().__init__(folder, 0, lambda path: None)
        self.name, self.size = name, size

    def note(self, event: str, arguments: tuple) -> None:
        if event != "open" or not arguments or isinstance(arguments[0], int):
            return
        path, mode = os.fspath(arguments[0]), arguments[1]
        if "step-00000003." in path and path.endswith(self.name) and "w" in (mode or ""):
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))
            self.number = -1


def child(faults: Faults, folder: Path, tokenizer: Path) -> int:
    """Write commits under faults in a forked process. Returns its exit code."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    code = UNNAMED
    try:
        faults.install()
        try:
            write_commits(folder, tokenizer)
            code = 0 if len(faults.seen) > faults.number else NOT_REACHED
        except (RuntimeError, OSError) as error:
            code = NAMED if str(folder) in str(error) else UNNAMED
            if code == UNNAMED:
                print(repr(error), faults.seen[-3:], file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def make_fault(mode: str) -> Callable[[str | None], None]:
    def fail(path: str | None) -> None:
        if mode in ("exit", "fresh"):
            os._exit(GONE)
        number = getattr(errno, mode)
        raise OSError(number, os.strerror(number), path)

    return fail


def check_what_is_left(folder: Path, at_least: int) -> None:
    """Whatever was cut: all commits are whole, and the next start goes on from the newest."""
    found = list(list_checkpoints(folder))
    for path in found:
        checkpoint.check_checkpoint(path)
        step = checkpoint.load_state(path)[0].step
        assert checkpoint.step_of(path) == step
        assert torch.equal(checkpoint.load_model_state(path)["weight"], tensors(step)[0]["weight"])
        assert "optimizer" in checkpoint.load_optimizer_state(path)
    newest = checkpoint.step_of(found[-1]) if found else 0
    assert newest >= at_least
    if (folder / "best").is_symlink():
        checkpoint.check_checkpoint(folder / "best")
    assert set(load_scores(folder, LAST_STEP).by_step) <= {2}

    prune(folder, keep=1)
    assert not list(folder.glob(".*"))
    assert len(list(list_checkpoints(folder))) <= 2
    following = checkpoint.commit(
        folder,
        make_record(folder.parent / "words"),
        TrainState(step=newest + 1),
        *tensors(newest + 1),
    )
    checkpoint.check_checkpoint(following)


def cut_operations(
    mode: str, place: Callable[[], Path], tokenizer: Path, first: int = 0, stride: int = 1
) -> Iterator[str]:
    """Cut before one operation after the other; gives what came of each."""
    for number in itertools.count(first, stride):
        folder = place()
        faults = Faults(folder, number, make_fault(mode))
        code = child(faults, folder, tokenizer)
        check_what_is_left(folder, at_least=0 if mode == "fresh" else 1)
        if code == NOT_REACHED:
            return
        # Deleting what is no longer needed may fail without ending a run.
        assert code == GONE if mode in ("exit", "fresh") else code in (NAMED, 0), (number, code)
        yield "error" if code == NAMED else "exit" if code == GONE else "went on"


def cut_writes(mode: str, place: Callable[[], Path], tokenizer: Path) -> Iterator[str]:
    """Cut each file of a commit in the middle of a write; gives the files."""
    number = signal.SIG_DFL if mode == "kill" else signal.SIG_IGN
    signal.signal(signal.SIGXFSZ, number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    whole = place()
    write_commits(whole, tokenizer)
    for path in sorted((whole / "step-00000004").iterdir()):
        size = path.stat().st_size
        for limit in sorted({0, 1, size // 4, size // 2, size - 1}):
            folder = place()
            code = child(Limits(folder, path.name, limit), folder, tokenizer)
            assert code == (-signal.SIGXFSZ if mode == "kill" else NAMED), (path.name, limit, code)
            assert [p.name for p in list_checkpoints(folder)] == ["step-00000002"]
            check_what_is_left(folder, at_least=2)
            yield path.name


def main() -> None:
    root, mode = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    tokenizer = root / "words"
    tokenizer.write_text("{}" * 100)
    os.fsync = lambda descriptor: None  # type: ignore
    template = root / "template"
    template.mkdir()
    if mode != "fresh":
        checkpoint.commit(template, make_record(tokenizer), TrainState(step=1), *tensors(1))
    numbers = itertools.count()

    def place() -> Path:
        before = root / f"checkpoints{next(numbers)}"
        if mode != "fresh":
            shutil.copytree(template, before)
        return before

    cut = cut_writes if mode in ("kill", "short") else cut_operations
    print(json.dumps(collections.Counter(cut(mode, place, tokenizer, *map(int, sys.argv[3:])))))


if __name__ == "__main__":
    main()
