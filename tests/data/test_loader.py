"""The loaders: batches in order, with loader workers or without."""

from itertools import chain

import pytest
import torch
from support.shards import Scenes

from pipeline.config.data import DataConfig
from pipeline.data.batch import Batch
from pipeline.data.dataset import EvalDataset, TrainDataset
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.partition import MicroBatchSampler
from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import Order
from pipeline.runtime.world import World


def load(scenes: Scenes, workers: int) -> tuple[list[Batch], MicroBatchSampler, TrainDataset]:
    """All batches that remain after step 2; all are kept, so that the shared buffers run out."""
    shards = ShardFolder(scenes.train)
    dataset = TrainDataset(shards, DataConfig(image_size=32, workers=workers), seed=0)
    order = Order.of(shards.manifest, seed=0, shuffle_block=2)
    sampler = MicroBatchSampler(order, 4, 63, 2, rank=0, world_size=1, accumulation_steps=1)
    return list(train_loader(dataset, sampler, World(), [0], pin_memory=False)), sampler, dataset


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_come_in_the_order_of_the_sampler(scenes: Scenes, workers: int) -> None:
    batches, sampler, dataset = load(scenes, workers)
    assert len(batches) == len(sampler) == 14
    for batch, slots in zip(batches, sampler, strict=True):
        expected = dataset[slots]
        assert batch.ids == expected.ids
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.tokens, expected.tokens)


@pytest.mark.parametrize("world_size", [1, 3, 9])
def test_the_ranks_of_an_evaluation_load_each_sample_once(scenes: Scenes, world_size: int) -> None:
    shards = ShardFolder(scenes.val)
    dataset = EvalDataset(shards, image_size=32)
    found = []
    for rank in range(world_size):
        world = World(rank=rank, world_size=world_size)
        batches = list(eval_loader(dataset, 2, world, workers=0, pin_memory=False))
        assert all(len(batch.ids) <= 2 for batch in batches)
        found += list(chain.from_iterable(batch.ids for batch in batches))
    assert sorted(found) == sorted(int(shards.index.key(sample)) for sample in range(7))
