"""Fixtures that several tests share: a small drawn data set in shards, and the real data."""

import os
from pathlib import Path

# Before torch is imported. Two tests run at a time, and beside other work the threads of one small
# operation wait for each other's turn: a test of one second has taken ninety.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from support.repository import REAL_DATA
from support.shards import Scenes, build_shards, run_shards

from shards.sample_data import draw_data_set

# A deadline a case would fail on a busy machine and say nothing about the code.
settings.register_profile("capstream", deadline=None)
settings.load_profile("capstream")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """63 training and 7 validation images, in uneven shards."""
    folder = tmp_path_factory.mktemp("scenes")
    drawn = Scenes(folder / "data", folder / "tokenizer.json", folder / "train", folder / "val")
    draw_data_set(drawn.data, 70, seed=0)
    annotations = drawn.data / "annotations" / "captions_train2017.json"
    done = run_shards(
        "tokenizer", "--annotations", annotations, "--out", drawn.tokenizer, "--min-count", 1
    )
    assert done.returncode == 0, done.stderr
    options = ("--samples-per-shard", 10, "--resize-short", 48, "--workers", 1)
    build_shards(drawn.data, "train", drawn.tokenizer, drawn.train, *options)
    build_shards(drawn.data, "val", drawn.tokenizer, drawn.val, *options)
    return drawn


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real COCO and Flickr8k data, where there is one."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real data beside the checkout (../shared/data)")
    return REAL_DATA
