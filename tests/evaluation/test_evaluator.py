"""Evaluation in this process: every image is captioned once, or there is an error."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.shards import Scenes

from pipeline.config.generation import GenerationConfig
from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.data.batch import EvalBatch, TooManyBadError
from pipeline.data.dataset import EvalDataset
from pipeline.data.reader import ShardFolder
from pipeline.distributed.process_group import join_processes
from pipeline.distributed.watchdog import Watchdog
from pipeline.evaluation.evaluator import Evaluation, EvaluationTask, evaluate
from pipeline.generation.blocks import generate
from pipeline.model.captioner import Captioner
from pipeline.runtime.world import World
from shards.format.index import read_index
from shards.format.manifest import read_manifest

MODEL = ModelConfig(
    dim=8,
    encoder=EncoderConfig(name="shufflenet_v2_x0_5", hidden_dim=8),
    decoder=DecoderConfig(hidden_dim=8),
)


GENERATION = GenerationConfig("sample", max_tokens=5)


@pytest.fixture(scope="module")
def captioner(scenes: Scenes) -> Captioner:
    """A captioner with random weights."""
    torch.manual_seed(0)
    vocab_size = ShardFolder(scenes.val).tokenizer.get_vocab_size()
    return Captioner(MODEL, vocab_size).to(join_processes(World()).device)


def run(captioner: Captioner, dataset: EvalDataset, max_bad: float = 0.0) -> Evaluation:
    task = EvaluationTask(dataset, GENERATION, 3, workers=0, max_bad=max_bad, num_shown=2)
    return evaluate(join_processes(World()), World(), captioner, task, Watchdog(World()))


def test_each_image_is_captioned_once_and_keeps_its_references(
    scenes: Scenes, captioner: Captioner
) -> None:
    shards = ShardFolder(scenes.val)
    dataset = EvalDataset(shards, 32)
    evaluation = run(captioner, dataset)
    read = [shards.read(sample) for sample in range(7)]
    assert evaluation.references == {int(key): meta["captions"] for key, _, meta in read}
    assert list(evaluation.captions) == list(evaluation.references)
    assert evaluation.bad == []
    captioner.eval()
    device = next(captioner.parameters()).device
    batch = dataset[np.arange(3)]  # the first batch, as it was captioned
    found = generate(captioner, batch.images.to(device), batch.ids, shards.tokenizer, GENERATION)
    captions = [best.text for best, *_ in found]
    assert [evaluation.captions[image_id] for image_id in batch.ids] == captions
    assert [shown.caption for shown in evaluation.shown] == captions[:2]
    assert [shown.reference for shown in evaluation.shown] == [r[0] for r in batch.references[:2]]
    assert evaluation.results()[0] == {
        "image_id": next(iter(evaluation.captions)),
        "caption": next(iter(evaluation.captions.values())),
    }


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_captioner_is_restored(
    scenes: Scenes, captioner: Captioner, training: bool
) -> None:
    captioner.train(training)
    run(captioner, EvalDataset(ShardFolder(scenes.val), 32))
    assert captioner.training is training
    assert captioner.decoder.training is training


def test_bad_samples_are_left_out_by_name_up_to_the_limit(
    scenes: Scenes, captioner: Captioner, tmp_path: Path
) -> None:
    folder = tmp_path / "val"
    shutil.copytree(scenes.val, folder)
    path = folder / read_manifest(folder).shards[0].file
    data = bytearray(path.read_bytes())
    data[int(read_index(folder).image_offset[0]) + 30] ^= 4
    path.write_bytes(data)
    dataset = EvalDataset(ShardFolder(folder), 32)
    evaluation = run(captioner, dataset, max_bad=0.2)
    assert len(evaluation.captions) == len(evaluation.references) == 6
    (text,) = evaluation.bad
    assert dataset.shards.index.key(0) in text
    assert int(dataset.shards.index.key(0)) not in evaluation.captions
    with pytest.raises(TooManyBadError, match="1 bad sample of 7"):
        run(captioner, dataset, max_bad=0.1)


class RepeatsItself(EvalDataset):
    """Gives every image of a batch the id of the first one, as a faulty loader might."""

    def __getitem__(self, samples: np.ndarray) -> EvalBatch:
        batch = super().__getitem__(samples)
        return batch._replace(ids=batch.ids[:1] * len(batch.ids))


def test_an_image_that_is_missing_is_an_error_and_not_a_score(
    scenes: Scenes, captioner: Captioner
) -> None:
    with pytest.raises(RuntimeError, match=r"7 captions of 3 images, but .* has 7 images"):
        run(captioner, RepeatsItself(ShardFolder(scenes.val), 32))
