"""Damaged samples are left out by name, counted, and stop a run when they are too many."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.shards import Scenes
from support.training import read_sample_log, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.checkpoint.commit import load_state
from pipeline.checkpoint.folder import list_checkpoints
from pipeline.config.data import DataConfig
from pipeline.data.dataset import EvalDataset, TrainDataset
from pipeline.data.reader import ShardFolder
from shards.format.index import read_index
from shards.format.manifest import read_manifest

BAD = (3, 41)  # sample numbers


@pytest.fixture(scope="module")
def damaged(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training shards with one bit of an image and one of a JSON flipped."""
    folder = tmp_path_factory.mktemp("damaged") / "train"
    shutil.copytree(scenes.train, folder)
    index, manifest = read_index(folder), read_manifest(folder)
    for sample, column in zip(BAD, ("image_offset", "meta_offset"), strict=True):
        shard = int(np.searchsorted(index.shard_starts, sample, side="right")) - 1
        path = folder / manifest.shards[shard].file
        data = bytearray(path.read_bytes())
        data[int(getattr(index, column)[sample]) + 30] ^= 4
        path.write_bytes(data)
    return folder


def ids_of(folder: Path, *samples: int) -> set[int]:
    index = read_index(folder)
    return {int(index.key(sample)) for sample in samples}


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 2)])
def test_bad_samples_are_named_counted_and_left_out(
    damaged: Path, tmp_path: Path, processes: int, workers: int
) -> None:
    done = train(
        processes, "--data.train", damaged, "--data.val", damaged, "--run_dir", tmp_path / "run",
        "--data.workers", workers, "--train.epochs", 2, "--data.max_bad", 0.04,
        "--monitor.sample_log", tmp_path / "log", "--monitor.log_every", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "left out" in line]
    assert len(lines) == 4  # each once an epoch
    not_scored = [line for line in done.stdout.splitlines() if "not scored" in line]
    for key in ids_of(damaged, *BAD):
        assert sum(f"{key:012d}" in line and "crc32" in line for line in lines) == 2
        assert any(f"{key:012d}" in line for line in not_scored)
    steps = read_sample_log(tmp_path / "log")
    seen = [image_id for ids in steps.values() for image_id in ids]
    assert set(seen) == ids_of(damaged, *range(63)) - ids_of(damaged, *BAD)
    assert len(seen) == 2 * 61
    assert load_state(list(list_checkpoints(tmp_path / "run" / "checkpoints"))[-1])[0].num_bad == 4
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert events.Scalars("data/bad_samples")[-1].value == 4


def test_too_many_bad_samples_stop_the_run(damaged: Path, tmp_path: Path) -> None:
    done = train(
        2, "--data.train", damaged, "--run_dir", tmp_path / "run", "--train.epochs", 1,
        "--data.max_bad", 0.02,
    )  # fmt: skip
    assert done.returncode == 1
    assert "2 bad samples of 63, more than max_bad (2.00%) allows" in done.stderr


def test_an_image_that_does_not_decode_and_a_token_too_large_are_bad_samples(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples with a correct crc32: packed by other software, or with another vocabulary."""
    shards = ShardFolder(scenes.train)
    whole = shards.read

    def read(sample: int) -> tuple[str, bytes, dict]:
        key, image, meta = whole(sample)
        if sample == 1:
            return key, image[: len(image) // 2], meta
        if sample == 2:
            return key, image, meta | {"tokens": [[9999], *meta["tokens"][1:]]}
        return key, image, meta

    monkeypatch.setattr(shards, "read", read)
    dataset = TrainDataset(shards, DataConfig(image_size=32), seed=0)
    batch = dataset[np.array([(0, 0), (0, 1), (0, 2), (0, 3)])]
    assert batch.ids == [int(shards.index.key(n)) for n in (0, 3)]
    assert batch.weights.sum(dim=1).tolist() == [5, 0, 0, 5]
    assert batch.images[1:3].sum() == 0
    assert [shards.index.key(n) in text for n, text in zip((1, 2), batch.bad, strict=True)] == [
        True, True,
    ]  # fmt: skip
    assert "token 9999" in batch.bad[1]
    scored = EvalDataset(shards, 32)[np.array([0, 1, 3])]
    assert (len(scored.ids), len(scored.images), len(scored.bad)) == (2, 2, 1)
