"""Usage errors: one line on stderr and exit code 2."""

import json
from pathlib import Path

import pytest

from pipeline.runtime import errors
from pipeline.runtime.errors import USAGE, usage_errors
from pipeline.runtime.world import World


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_a_mistake_of_the_user_is_one_line(
    kind: type[Exception], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    with pytest.raises(SystemExit) as ended, usage_errors("train", World()):
        raise kind("data.train: x:\n  no such folder")
    assert ended.value.code == USAGE == 2
    assert capsys.readouterr() == ("", "train: data.train: x: no such folder\n")


def test_the_launcher_is_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    with pytest.raises(SystemExit), usage_errors("train", World()):
        raise ValueError("no data")
    assert json.loads(file.read_text())["message"] == "train: no data"


def test_local_rank_0_may_speak_first(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = []
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.setattr(errors.time, "sleep", slept.append)
    for local_rank in (0, 1):
        with pytest.raises(SystemExit), usage_errors("train", World(local_rank=local_rank)):
            raise ValueError("no data")
    assert slept == [errors.HEAD_START_S]


def test_a_fault_of_the_program_keeps_its_trace() -> None:
    with pytest.raises(KeyError), usage_errors("train", World()):
        raise KeyError("a bug")
