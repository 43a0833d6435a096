"""The sample log."""

import json
from pathlib import Path

import pytest

from pipeline.observability.sample_log import SampleLog


def test_each_step_is_a_line_that_a_kill_cannot_take_back(tmp_path: Path) -> None:
    log = SampleLog(str(tmp_path / "logs" / "run"), rank=3)
    log.write(0, [5, "x"])
    log.write(1, [])
    lines = (tmp_path / "logs" / "run.rank3.jsonl").read_text().splitlines()  # not closed yet
    assert [json.loads(line) for line in lines] == [
        {"step": 0, "ids": [5, "x"]}, {"step": 1, "ids": []}
    ]  # fmt: skip


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for step in (0, 1):
        SampleLog(str(tmp_path / "run"), rank=0).write(step, [step])
    assert len((tmp_path / "run.rank0.jsonl").read_text().splitlines()) == 2


def test_without_a_prefix_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    SampleLog(None, rank=0).write(0, [1])
    assert not list(tmp_path.iterdir())
