"""Captions of a whole captioner: the same in every batch, bit for bit."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch.multiprocessing import spawn

from pipeline.config.generation import GenerationConfig
from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.generation.blocks import generate, generate_tokens, whole_blocks
from pipeline.generation.constraints import Constraints
from pipeline.generation.ensemble import Ensemble
from pipeline.model.captioner import Captioner
from pipeline.model.decoders import DECODERS
from shards.tokenizer import train_word_tokenizer

MODEL = ModelConfig(
    dim=24,
    encoder=EncoderConfig(name="shufflenet_v2_x0_5", hidden_dim=16),
    decoder=DecoderConfig(hidden_dim=40),
)
CONFIGS = [
    GenerationConfig(max_tokens=9),
    GenerationConfig("beam", max_tokens=9, beam=3, num_captions=2, length_penalty=0.7),
    GenerationConfig("diverse_beam", max_tokens=9, beam=4, groups=2, num_captions=2),
    GenerationConfig("sample", max_tokens=9, num_captions=2, top_p=0.9, no_repeat_ngram=2),
]
NUM_IMAGES = 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_word_tokenizer([f"word{number}" for number in range(96)], 1)


def random_captioner(seed: int, kind: str = "lstm") -> Captioner:
    """A captioner whose captions differ from image to image."""
    torch.manual_seed(seed)
    decoder = replace(MODEL.decoder, kind=kind, hidden_dim=24 if kind == "adaptive" else 40)
    captioner = Captioner(replace(MODEL, decoder=decoder), 100)
    for layer in captioner.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0  # one pass fits the statistics
    with torch.no_grad():
        captioner.encoder.head[0].weight *= 30  # what is seen counts beside the words
        captioner.train().encoder(random_images(NUM_IMAGES))
        torch.nn.init.normal_(captioner.decoder.to_words.weight)
        torch.nn.init.normal_(captioner.decoder.embed.weight)  # type: ignore[attr-defined]
    return captioner.eval()


def random_images(count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=draw)
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3).permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return random_captioner(0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_captions_and_scores_are_the_same_in_every_batch(
    captioner: Captioner, tokenizer: Tokenizer, config: GenerationConfig
) -> None:
    check_batches(captioner, tokenizer, config)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_captions_and_scores_are_the_same_in_every_batch_with_two_threads(
    captioner: Captioner, tokenizer: Tokenizer, config: GenerationConfig
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check_batches(captioner, tokenizer, config)
    finally:
        torch.set_num_threads(before)


def check_batches(captioner: Captioner, tokenizer: Tokenizer, config: GenerationConfig) -> None:
    images, ids = random_images(NUM_IMAGES), range(100, 100 + NUM_IMAGES)
    whole = generate(captioner, images, ids, tokenizer, config)
    assert len({best.text for best, *_ in whole}) > 10
    assert {len(captions) for captions in whole} == {config.num_captions}
    for size in (1, 7, 32):
        parts = [
            generate(captioner, images[i : i + size], ids[i : i + size], tokenizer, config)
            for i in range(0, NUM_IMAGES, size)
        ]
        assert list(itertools.chain(*parts)) == whole
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(1)).tolist()
    mixed = generate(captioner, images[order], [ids[i] for i in order], tokenizer, config)
    assert mixed == [whole[i] for i in order]


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind != "lstm"])
def test_every_decoder_gives_the_same_captions_in_every_batch(
    tokenizer: Tokenizer, kind: str
) -> None:
    check_batches(random_captioner(0, kind), tokenizer, CONFIGS[1])


def caption_shares(
    rank: int, captioner: Captioner, tokenizer: Tokenizer, configs: list, folder: Path
) -> None:
    """As a rank of 2 and of 3 processes: caption every second and every third image."""
    torch.set_num_threads(1)
    images = random_images(NUM_IMAGES)
    for world_size in (2, 3):
        if rank < world_size:
            ids = range(rank, NUM_IMAGES, world_size)
            found = [generate(captioner, images[ids], ids, tokenizer, c) for c in configs]
            (folder / f"{rank}-{world_size}.json").write_text(json.dumps(found))


def test_captions_and_scores_are_the_same_for_1_2_and_3_processes(
    captioner: Captioner, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """By beam search and by sampling. In tests/test_evaluate.py it is the whole command."""
    configs = [CONFIGS[1], CONFIGS[3]]
    images, ids = random_images(NUM_IMAGES), range(NUM_IMAGES)
    spawn(caption_shares, (captioner, tokenizer, configs, tmp_path), nprocs=3)
    for number, config in enumerate(configs):
        alone = json.loads(json.dumps(generate(captioner, images, ids, tokenizer, config)))
        for world_size in (2, 3):
            for rank in range(world_size):
                shares = json.loads((tmp_path / f"{rank}-{world_size}.json").read_text())
                assert shares[number] == alone[rank::world_size]


def test_several_captions_are_in_the_order_of_their_scores(
    captioner: Captioner, tokenizer: Tokenizer
) -> None:
    for config in CONFIGS[1:]:
        found = generate(captioner, random_images(5), range(5), tokenizer, config)
        assert all(first.score >= second.score for first, second in found)


def test_mixed_precision_around_it_changes_nothing(
    captioner: Captioner, tokenizer: Tokenizer
) -> None:
    images = random_images(5)
    expected = generate(captioner, images, range(5), tokenizer, CONFIGS[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert generate(captioner, images, range(5), tokenizer, CONFIGS[1]) == expected


def test_an_ensemble_is_used_like_a_captioner(captioner: Captioner, tokenizer: Tokenizer) -> None:
    images, config = random_images(9), CONFIGS[1]
    alone = generate(captioner, images, range(9), tokenizer, config)
    twice = generate(Ensemble([captioner, captioner]), images, range(9), tokenizer, config)
    assert [[c.text for c in row] for row in twice] == [[c.text for c in row] for row in alone]
    both = Ensemble([captioner, random_captioner(1)]).eval()
    mixed = generate(both, images, range(9), tokenizer, config)
    assert mixed != alone
    assert generate(both, images[3:4], [3], tokenizer, config) == mixed[3:4]


def test_no_images_and_no_attention(captioner: Captioner, tokenizer: Tokenizer) -> None:
    assert generate(captioner, random_images(0), [], tokenizer, CONFIGS[0]) == []
    images = random_images(2)
    found = generate_tokens(
        captioner, images, [1, 2], Constraints(5), CONFIGS[0], with_attention=True
    )
    assert found.attention is None


def test_whole_blocks_hold_at_least_as_many_images() -> None:
    sizes = [whole_blocks(number, torch.device("cpu")) for number in (0, 1, 32, 33, 96)]
    assert sizes == [32, 32, 32, 64, 96]
