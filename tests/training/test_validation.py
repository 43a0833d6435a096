"""Validation: what a kill prevented is made up for, and the best checkpoint is marked."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.shards import Scenes
from support.training import tiny_settings

from pipeline.checkpoint.best import Scores, load_scores
from pipeline.checkpoint.state import TrainState
from pipeline.config.parser import parse_config
from pipeline.distributed.process_group import join_processes
from pipeline.distributed.watchdog import Watchdog
from pipeline.observability.monitor import Monitor
from pipeline.runtime.preemption import STOP_SIGNALS, STOPPED, STOPPED_MARK, StopRequest
from pipeline.runtime.world import World
from pipeline.training.inputs import prepare
from pipeline.training.validation import Validator

STEPS = 2
DONE = TrainState(step=STEPS, updates=STEPS, samples_consumed=10 * STEPS)


@dataclass(frozen=True)
class Case:
    """A validator, and the run folder that holds the checkpoints of steps 1 and 2."""

    validator: Validator
    checkpoints: Path

    def best(self) -> str | None:
        link = self.checkpoints / "best"
        return str(link.readlink()) if link.is_symlink() else None


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield StopRequest()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def make_case(scenes: Scenes, tmp_path: Path, stop: StopRequest) -> Callable[..., Case]:
    def make(*settings: object) -> Case:
        flags = tiny_settings("--data.train", scenes.train, "--run_dir", tmp_path / "run",
                              "--train.steps", STEPS, *settings)  # fmt: skip
        run = prepare(parse_config(flags), World())
        for step in range(1, STEPS + 1):
            write_checkpoint(tmp_path / "run", TrainState(step=step))
        monitor = Monitor(tmp_path / "run", True, 0, STEPS, 1, 1)
        accelerator = join_processes(World())
        run.captioner.to(accelerator.device)
        validator = Validator(run, accelerator, Watchdog(World()), stop, monitor)
        return Case(validator, run.checkpoints)

    return make


def test_a_missing_evaluation_is_made_up_for(
    make_case: Callable[..., Case], scenes: Scenes, capsys: pytest.CaptureFixture[str]
) -> None:
    case = make_case("--data.val", scenes.val)
    case.validator.catch_up(DONE)
    assert set(case.validator.scores.by_step) == {STEPS}
    assert load_scores(case.checkpoints, STEPS) == case.validator.scores
    assert case.best() == "step-00000002"
    assert "step 2: " in capsys.readouterr().out


def test_a_missing_mark_is_made_up_for_without_another_evaluation(
    make_case: Callable[..., Case], scenes: Scenes, capsys: pytest.CaptureFixture[str]
) -> None:
    case = make_case("--data.val", scenes.val)
    case.validator.scores = Scores("v", {1: {"CIDEr": 0.5}, 2: {"CIDEr": 0.25}})
    case.validator.catch_up(DONE)
    assert case.best() == "step-00000001"
    assert "CIDEr" not in capsys.readouterr().out


def test_nothing_is_made_up_for_where_nothing_was_due(
    make_case: Callable[..., Case], scenes: Scenes
) -> None:
    case = make_case("--data.val", scenes.val)
    case.validator.catch_up(TrainState(step=1, samples_consumed=10))
    assert not case.validator.scores.by_step
    assert case.best() is None


def test_without_a_validation_set_the_last_checkpoint_of_a_complete_run_is_the_best(
    make_case: Callable[..., Case],
) -> None:
    case = make_case()
    assert not case.validator.due(STEPS)
    case.validator.finish(TrainState(step=1, samples_consumed=10))
    assert case.best() is None
    case.validator.finish(DONE)
    assert case.best() == "step-00000002"


def test_the_end_of_a_run_does_not_overrule_its_scores(
    make_case: Callable[..., Case], scenes: Scenes
) -> None:
    case = make_case("--data.val", scenes.val)
    case.validator.finish(DONE)
    assert case.best() is None


def test_a_run_that_ends_without_its_validation_set_keeps_the_best_of_before(
    make_case: Callable[..., Case],
) -> None:
    case = make_case()
    case.validator.scores = Scores("v", {1: {"CIDEr": 0.5}, 2: {"CIDEr": 0.25}})
    case.validator.finish(DONE)
    assert case.best() == "step-00000001"


def test_a_stop_request_ends_an_evaluation_at_once(
    make_case: Callable[..., Case], scenes: Scenes, stop: StopRequest,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.delenv(STOPPED_MARK, raising=False)
    monkeypatch.setattr(os, "_exit", leave)
    case = make_case("--data.val", scenes.val)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.requested
    with pytest.raises(SystemExit) as ended:
        case.validator.evaluate(DONE)
    assert ended.value.code == STOPPED
    assert "asked to stop: step 2 is committed" in capsys.readouterr().out
    assert case.best() is None
