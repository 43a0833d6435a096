"""Shards -> batches."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.shards import Scenes

from pipeline.config.data import DataConfig
from pipeline.data.batch import collate_captions
from pipeline.data.dataset import EvalDataset, TrainDataset
from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import EMPTY_SLOT, keyed_bytes
from pipeline.data.transforms import center_crop, training_crop
from shards.tokenizer import BOS, EOS, PAD

token_lists = st.lists(
    st.lists(st.lists(st.integers(4, 99), min_size=1, max_size=9), max_size=3), max_size=5
)


@given(token_lists)
def test_collated_captions_hold_each_token_between_its_marks(captions: list) -> None:
    tokens, weights = collate_captions(captions, 3)
    assert tokens.shape[:2] == weights.shape == (len(captions), 3)
    for row, image in enumerate(captions):
        assert weights[row].tolist() == [1.0] * len(image) + [0.0] * (3 - len(image))
        for column in range(3):
            held = [t for t in tokens[row, column].tolist() if t != PAD]
            assert held == ([BOS, *image[column], EOS] if column < len(image) else [])


def slots(*rows: tuple[int, int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def test_a_slot_decides_its_sample_alone(scenes: Scenes) -> None:
    config = DataConfig(captions_per_image=3, image_size=32, min_crop=0.5)
    dataset = TrainDataset(ShardFolder(scenes.train), config, seed=5)
    both = dataset[slots((0, 7), (3, 9))]
    alone = dataset[slots((3, 9))]
    assert both.images.shape == (2, 32, 32, 3)
    assert torch.equal(both.images[1], alone.images[0])
    assert both.ids[1:] == alone.ids
    width = alone.tokens.shape[-1]
    assert torch.equal(both.tokens[1, :, :width], alone.tokens[0])
    other_epoch = dataset[slots((4, 9))]
    assert other_epoch.ids == alone.ids
    assert not torch.equal(other_epoch.images, alone.images)
    assert not torch.equal(TrainDataset(dataset.shards, config, 6)[slots((3, 9))].images,
                           alone.images)  # fmt: skip


def test_an_empty_slot_weighs_nothing(scenes: Scenes) -> None:
    dataset = TrainDataset(ShardFolder(scenes.train), DataConfig(image_size=32), seed=0)
    batch = dataset[slots((0, 1), (EMPTY_SLOT, EMPTY_SLOT))]
    assert len(batch.ids) == 1
    assert batch.weights.tolist() == [[1.0] * 5, [0.0] * 5]
    assert batch.images[1].sum() == 0


def test_missing_captions_are_filled_up_with_weight_zero(scenes: Scenes) -> None:
    config = DataConfig(image_size=32, captions_per_image=8)
    batch = TrainDataset(ShardFolder(scenes.train), config, seed=0)[slots((0, 0))]
    assert batch.weights.tolist() == [[1.0] * 5 + [0.0] * 3]


def test_evaluation_sees_raw_captions(scenes: Scenes) -> None:
    shards = ShardFolder(scenes.val)
    batch = EvalDataset(shards, 32)[np.arange(len(shards))]
    assert batch.images.shape == (7, 32, 32, 3)
    assert len(set(batch.ids)) == 7
    assert all(len(references) == 5 for references in batch.references)
    assert all(text[0].isupper() for texts in batch.references for text in texts)


def test_a_flipped_byte_is_never_read_in_silence(scenes: Scenes, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    shutil.copytree(scenes.train, folder)
    index = ShardFolder(folder).index
    for offset in (int(index.image_offset[2]) + 9, int(index.meta_offset[2]) + 9):
        shutil.copy(scenes.train / "train-000000.tar", folder)
        with open(folder / "train-000000.tar", "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
        shards = ShardFolder(folder)
        shards.read(1)
        with pytest.raises(ValueError, match=rf"train-000000\.tar: sample {index.key(2)}"):
            shards.read(2)


def test_a_folder_that_is_no_data_set_is_named(scenes: Scenes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such shard folder"):
        ShardFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a finished data set"):
        ShardFolder(tmp_path)
    folder = tmp_path / "train"
    shutil.copytree(scenes.train, folder)
    (folder / "index.npz").write_bytes((folder / "index.npz").read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged index"):
        ShardFolder(folder)


# ------------------------------------------------------------------------------------------- crops


def gradient(width: int, height: int) -> bytes:
    """A JPEG whose red tells the column and whose green tells the row."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return simplejpeg.encode_jpeg(
        np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8), 95, colorsubsampling="444"
    )


@given(st.integers(40, 300), st.integers(40, 300), st.integers(0, 99), st.floats(0.3, 1.0))
def test_a_training_crop_is_an_upright_square_of_the_allowed_size(
    width: int, height: int, number: int, min_crop: float
) -> None:
    out = np.zeros((64, 64, 3), dtype=np.uint8)
    training_crop(gradient(width, height), out, min_crop, keyed_bytes(24, number))
    red, green = out[:, :, 0].astype(float), out[:, :, 1].astype(float)
    seen_width = (red[:, -1] - red[:, 0]).mean() / 255 * width
    seen_height = (green[-1] - green[0]).mean() / 255 * height
    side = min(width, height)
    slack = 4 + 0.05 * side  # half pixels at the edges, JPEG noise
    assert min_crop * side - slack < seen_width < side + slack
    assert min_crop * side - slack < seen_height < side + slack


def test_a_center_crop_is_the_middle() -> None:
    out = np.zeros((50, 50, 3), dtype=np.uint8)
    center_crop(gradient(200, 100), out)
    assert abs(out[:, :, 0].mean() - 127.5) < 2
    assert abs(out[0, :, 1].mean()) < 4
    assert out[:, 0, 0].mean() == pytest.approx(255 * 0.25, abs=4)


@pytest.mark.parametrize("name", ["../train-000000.tar", "/etc/passwd.tar", "train.json", ""])
def test_a_manifest_whose_names_lead_elsewhere_is_refused(
    scenes: Scenes, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "train"
    shutil.copytree(scenes.train, folder)
    value = json.loads((folder / "manifest.json").read_text())
    value["shards"][1]["file"] = name
    (folder / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match="not the file name of a tar"):
        ShardFolder(folder)
