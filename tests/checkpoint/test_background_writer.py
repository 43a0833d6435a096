"""Commits beside the training: the state of their step, one at a time, no failure unheard."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_record

from pipeline.checkpoint import background_writer
from pipeline.checkpoint import commit as checkpoint
from pipeline.checkpoint.background_writer import BackgroundWriter
from pipeline.checkpoint.folder import list_checkpoints
from pipeline.checkpoint.state import TrainState


@pytest.fixture
def writer(tmp_path: Path) -> BackgroundWriter:
    (tmp_path / "words").write_text("{}")
    return BackgroundWriter(tmp_path / "c", make_record(tmp_path / "words"), 2, every_s=0)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Keep commits from being written until this is called."""
    gate, commit = threading.Event(), background_writer.commit

    def wait_and_commit(*arguments: object) -> Path:
        assert gate.wait(30)
        return commit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(background_writer, "commit", wait_and_commit)
    return gate.set


def state(step: int, tensor: torch.Tensor) -> tuple[TrainState, dict, dict]:
    group = {"lr": torch.tensor(0.5), "betas": (0.9, 0.999), "params": [0]}
    optimizer = {"state": {0: {"exp_avg": tensor}}, "param_groups": [group]}
    return TrainState(step=step), {"weight": tensor}, {"optimizer": optimizer}


def test_a_commit_holds_the_state_at_its_start(
    writer: BackgroundWriter, tmp_path: Path, held: Callable[[], None]
) -> None:
    tensor = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    before = tensor.clone()
    arguments = state(1, tensor)
    with writer:
        writer.start(*arguments)  # returns although nothing is written yet
        tensor.add_(1)
        arguments[2]["optimizer"]["param_groups"][0]["params"].append(1)
        assert not list(list_checkpoints(tmp_path / "c"))
        held()
    (path,) = list_checkpoints(tmp_path / "c")
    checkpoint.check_checkpoint(path)
    assert checkpoint.load_state(path)[0] == TrainState(step=1)
    assert torch.equal(checkpoint.load_model_state(path)["weight"], before)
    loaded = checkpoint.load_optimizer_state(path)["optimizer"]
    assert torch.equal(loaded["state"][0]["exp_avg"], before)
    assert loaded["state"][0]["exp_avg"].stride() == before.stride()
    assert loaded["param_groups"] == [{"lr": 0.5, "betas": (0.9, 0.999), "params": [0]}]


def test_a_commit_waits_for_the_one_before(
    writer: BackgroundWriter, tmp_path: Path, held: Callable[[], None]
) -> None:
    with writer:
        writer.start(*state(1, torch.zeros(1)))
        threading.Timer(0.3, held).start()
        started = time.monotonic()
        writer.start(*state(2, torch.zeros(1)))
        assert time.monotonic() - started > 0.2
        assert (tmp_path / "c" / "step-00000001").is_dir()
    assert len(list(list_checkpoints(tmp_path / "c"))) == 2


def check_steps(writer: BackgroundWriter) -> None:
    """As the training does, step by step."""
    for _ in range(3000):
        writer.check()
        time.sleep(0.01)


def test_every_method_raises_after_a_failed_commit(
    writer: BackgroundWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    writer.start(*state(1, torch.zeros(1)))
    with pytest.raises(RuntimeError, match=f"{tmp_path / 'c'}: .*No space left") as caught:
        check_steps(writer)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(RuntimeError, match="No space left"):
        writer.wait()
    with pytest.raises(RuntimeError, match="No space left"):
        writer.start(*state(2, torch.zeros(1)))
    with pytest.raises(RuntimeError, match="No space left"), writer:
        pass
    with pytest.raises(FloatingPointError) as other, writer:  # a fault of its own keeps its name
        raise FloatingPointError("loss")
    assert "No space left" in other.value.__notes__[0]
    assert not list((tmp_path / "c").iterdir())


def test_the_clock_calls_for_a_commit(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("{}")
    with BackgroundWriter(
        tmp_path / "c", make_record(tmp_path / "words"), 2, every_s=0.2
    ) as writer:
        assert not writer.overdue()
        time.sleep(0.25)
        assert writer.overdue()
        writer.start(*state(1, torch.zeros(1)))
        assert not writer.overdue()
    with BackgroundWriter(tmp_path / "c", make_record(tmp_path / "words"), 2, every_s=0) as writer:
        assert not writer.overdue()
