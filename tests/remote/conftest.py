"""Fixtures of the tests of remote data sets."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.shard_server import Server, serving
from support.shards import Scenes

import pipeline.remote.download
import shards.retry


@pytest.fixture
def server(scenes: Scenes, tmp_path: Path) -> Iterator[Server]:
    """The 7 shards of the drawn training pictures, free to be spoiled."""
    pytest.importorskip("upath", reason="universal_pathlib is not installed (the extra `remote`)")
    pytest.importorskip("aiohttp", reason="aiohttp is not installed (the extra `remote`)")
    shutil.copytree(scenes.train, tmp_path / "afar")
    with serving(tmp_path / "afar") as state:
        yield state


@pytest.fixture
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.retry, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(pipeline.remote.download, "PATIENCE_S", 0.0)
