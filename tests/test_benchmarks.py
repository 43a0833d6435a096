"""The commands that the benchmarks measure still work."""

import json
from pathlib import Path

import pytest

from benchmarks.images import build_command, run_quietly, shards_command, write_source


@pytest.mark.parametrize("resize_short", [256, 0])
def test_the_build_command_packs_all_images(tmp_path: Path, resize_short: int):
    shards_command("sample", "--out", tmp_path / "drawn", "--images", 6)
    images = tmp_path / "drawn" / "train2017"
    captions = next((tmp_path / "drawn" / "annotations").glob("*train*.json"))
    data = json.loads(captions.read_bytes())
    write_source(data, tmp_path / "source")
    out = tmp_path / "out"
    run_quietly(build_command(images, tmp_path / "source", out, 2, 1, resize_short))
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["num_samples"] == len(data["images"])
