"""Data sets behind paths and URLs, and the cache that a URL needs."""

from pathlib import Path

import pytest
from support.shard_server import Server, make_cache
from support.shards import Scenes

from pipeline.config.parser import parse_config
from pipeline.remote.cache import ShardCache
from pipeline.remote.location import locate_data_sets
from pipeline.runtime.world import World
from pipeline.training.inputs import prepare
from shards.format.manifest import read_manifest


def test_a_cache_that_is_too_small_says_what_would_do(server: Server, tmp_path: Path) -> None:
    def open_with(gb: float) -> ShardCache | None:
        return locate_data_sets([(server.url, 4)], str(tmp_path), gb, "data.cache")[0][1]

    with pytest.raises(ValueError, match=r"data\.cache_gb: 1e-05 GB .* least") as raised:
        open_with(1e-5)
    least = float(str(raised.value).split("; ")[1].split()[0])
    cache = open_with(least)
    assert cache is not None
    assert sum(sorted(shard.num_bytes for shard in cache.shards)[-4:]) <= cache.max_bytes
    with pytest.raises(ValueError, match=r"data\.cache_gb"):
        open_with(least * 0.98)


def test_a_run_needs_room_for_two_shuffle_blocks(server: Server, tmp_path: Path) -> None:
    shards = read_manifest(server.folder).shards
    two_blocks = sum(sorted(shard.num_bytes for shard in shards)[-4:])
    flags = ["--data.train", server.url, "--data.cache_dir", str(tmp_path / "cache")]
    flags += ["--data.shuffle_block", "2", "--data.cache_gb", str((two_blocks - 1) / 1e9)]
    with pytest.raises(ValueError, match=r"data\.cache_gb: .*two shuffle blocks"):
        prepare(parse_config(flags), World())


def test_a_cache_folder_that_cannot_be_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data\.cache_dir: .*file"):
        make_cache(server, tmp_path / "file", 7)


def test_a_path_needs_no_cache(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("upath", reason="universal_pathlib is not installed (the extra `remote`)")
    monkeypatch.chdir(scenes.train.parent)
    for place in (str(scenes.train), scenes.train.name, scenes.train.as_uri()):
        [(folder, cache)] = locate_data_sets([(place, 4)], None, 1e-9, "data.cache")
        assert cache is None
        assert folder.resolve() == scenes.train.resolve()
