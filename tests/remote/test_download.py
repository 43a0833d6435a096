"""Downloads: repeated after an error, and checked before they are used."""

import os
from pathlib import Path

import pytest
from support.cache_reader import is_right
from support.shard_server import Server, files_in, make_cache

import pipeline.remote.download
import shards.retry


@pytest.mark.usefixtures("fast_retries")
def test_a_damaged_download_is_fetched_again(server: Server, tmp_path: Path) -> None:
    cache = make_cache(server, tmp_path / "cache", 7)
    server.damage[cache.shards[2].file] = 3
    assert is_right(cache, 2)
    assert server.asked.count(cache.shards[2].file) == 4


@pytest.mark.usefixtures("fast_retries")
def test_a_server_that_refuses_for_a_moment_is_asked_again(server: Server, tmp_path: Path) -> None:
    names = ("manifest.json", "index.npz", "tokenizer.json", "train-000000.tar")
    server.refusals = dict.fromkeys(names, 2)
    cache = make_cache(server, tmp_path / "cache", 7)
    assert is_right(cache, 0)
    assert [server.asked.count(name) for name in names] == [3] * 4


@pytest.mark.usefixtures("fast_retries")
def test_a_store_that_is_away_for_long_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    attempts = shards.retry.ATTEMPTS
    cache = make_cache(server, tmp_path / "cache", 9)
    name = cache.shards[1].file
    server.refusals[name] = 3 * attempts
    with pytest.raises(OSError, match=rf"{name}.*failed {attempts} times.*503"):
        cache.open(1)
    monkeypatch.setattr(pipeline.remote.download, "PATIENCE_S", 600.0)
    monkeypatch.setattr(shards.retry, "REPORT_AFTER_S", 0.01)
    capfd.readouterr()
    os.close(cache.open(1))
    assert server.asked.count(name) == 3 * attempts + 1
    (line,) = capfd.readouterr().err.splitlines()
    assert name in line
    assert "retrying for up to 10 minutes" in line


@pytest.mark.usefixtures("fast_retries")
@pytest.mark.parametrize("longer", [b"", b"more"])
def test_a_replaced_object_is_named_and_never_let_in(
    server: Server, tmp_path: Path, longer: bytes
) -> None:
    cache = make_cache(server, tmp_path / "cache", 7)
    assert is_right(cache, 0)
    tar = server.folder / cache.shards[1].file
    tar.write_bytes(bytes(tar.stat().st_size) + longer)
    with pytest.raises(OSError, match=rf"{server.url}{tar.name}.*was replaced.*run_dir"):
        cache.open(1)
    assert files_in(cache) == [cache.shards[0].file]
    tar.unlink()
    with pytest.raises(OSError, match=rf"{server.url}{tar.name}: does not exist"):
        cache.open(1)
