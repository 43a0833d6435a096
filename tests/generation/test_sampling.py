"""Greedy decoding and sampling over any decoder."""

import math
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decoders import all_captions, captions_of, one_image, random_decoder, random_images
from torch.nn import functional

from pipeline.config.generation import GenerationConfig
from pipeline.generation.captions import Captions
from pipeline.generation.constraints import Constraints
from pipeline.generation.sampling import draw, greedy, keyed_noise, most_likely, sample
from pipeline.model.decoders.recurrent import RecurrentDecoder
from pipeline.model.protocols import Encoded
from shards.tokenizer import BOS, EOS, PAD

VOCAB = 11


class Parrot:
    """A decoder that says fixed words, then EOS for ever; its states are the scores."""

    def __init__(self, captions: list[list[int]]) -> None:
        self.captions = captions
        self.steps = 0

    def start(self, encoded: Encoded) -> int:
        return 0

    def to_words(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def step(self, tokens: torch.Tensor, state: int) -> tuple[torch.Tensor, int]:
        expected = [BOS if state == 0 else (c + [EOS] * 99)[state - 1] for c in self.captions]
        assert [t for t in tokens.tolist() if t != PAD] == [
            e for t, e in zip(tokens.tolist(), expected, strict=True) if t != PAD
        ]
        self.steps += 1
        said = torch.tensor([(c + [EOS] * 99)[state] for c in self.captions])
        scores = functional.one_hot(said, VOCAB).float()
        scores[:, PAD] = scores[:, BOS] = 9.0  # must never be said
        return scores, state + 1


def test_greedy_stops_when_all_captions_have_ended() -> None:
    parrot = Parrot([[5, 6, 7], [8]])
    found = greedy(parrot, Encoded(torch.zeros(2, 8)), Constraints(20))  # type: ignore[arg-type]
    assert found.tokens.tolist() == [[[5, 6, 7, EOS]], [[8, EOS, PAD, PAD]]]
    assert parrot.steps == 4
    log_prob = -math.log(1 + 8 / math.e)  # of 9 tokens that can be said, one has the score 1
    expected = torch.tensor([[[log_prob] * 4], [[log_prob] * 2 + [0.0] * 2]])
    torch.testing.assert_close(found.log_probs, expected)
    torch.testing.assert_close(found.scores, expected.sum(dim=2))


def test_greedy_stops_at_the_longest_caption_allowed() -> None:
    parrot = Parrot([[5] * 50])
    found = greedy(parrot, Encoded(torch.zeros(1, 8)), Constraints(3))  # type: ignore[arg-type]
    assert found.tokens.tolist() == [[[5, 5, 5]]]


SCORES = st.lists(st.floats(-8, 8), min_size=1, max_size=9, unique=True)


@given(SCORES, st.integers(1, 10))
def test_top_k_keeps_the_k_most_likely(scores: list[float], top_k: int) -> None:
    row = torch.tensor([scores, scores[::-1]], dtype=torch.float64)
    kept = most_likely(row, top_k=top_k)
    limit = sorted(scores, reverse=True)[:top_k][-1]
    assert torch.equal(kept, row.masked_fill(row < limit, -torch.inf))


@given(SCORES, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_reach_p(scores: list[float], top_p: float) -> None:
    row = torch.tensor([scores], dtype=torch.float64)
    kept = most_likely(row, top_p=top_p)
    is_kept = kept > -torch.inf
    assert torch.equal(kept[is_kept], row[is_kept])
    assert row[is_kept].min() >= row[~is_kept].max() if (~is_kept).any() else True
    probs = row.softmax(dim=1)[is_kept].sort().values
    assert float(probs.sum()) >= top_p - 1e-9
    assert float(probs[1:].sum()) < top_p + 1e-9


def test_top_p_is_of_what_top_k_leaves() -> None:
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    left = most_likely(probs, top_k=2, top_p=0.5)  # 0.4 / 0.7 reaches a half alone
    assert (left > -torch.inf).tolist() == [[True, False, False, False]]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8).filter(any), st.integers(0, 999))
def test_a_token_is_drawn_by_its_share_of_the_unit_interval(weights: list[int], at: int) -> None:
    noise = (at + 0.5) / 1000
    scores = torch.tensor([weights]).double().log()
    bounds = torch.tensor(weights).cumsum(0) / sum(weights)
    expected = next(number for number, bound in enumerate(bounds.tolist()) if noise < bound)
    assert draw(scores, torch.tensor([noise], dtype=torch.float64)).tolist() == [expected]


def test_noise_depends_on_seed_image_caption_and_step_alone() -> None:
    noise = keyed_noise(3, [7, "a", 8], 4, 6)
    assert noise.shape == (3, 4, 6)
    assert torch.equal(keyed_noise(3, ["a"], 2, 5)[0], noise[1, :2, :5])
    assert not torch.equal(keyed_noise(4, ["a"], 2, 5)[0], noise[1, :2, :5])
    assert len(noise.unique()) == noise.numel()
    # The first numbers are fixed: changing them changes the captions of every user.
    first = [round(value, 6) for value in keyed_noise(0, [139], 1, 3).flatten().tolist()]
    assert first == [0.78586, 0.51147, 0.658273]
    many = keyed_noise(0, range(1000), 1, 10)
    assert 0 <= float(many.min()) < 0.01
    assert 0.99 < float(many.max()) < 1
    assert abs(float(many.mean()) - 0.5) < 0.01


def drawn(
    decoder: RecurrentDecoder, images: Encoded, config: GenerationConfig, constraints: Constraints
) -> Captions:
    ids = range(len(images.pooled))
    noise = keyed_noise(config.seed, ids, config.num_captions, constraints.max_tokens)
    return sample(decoder, images, constraints, config, noise)


def test_captions_are_drawn_as_often_as_their_probability_says() -> None:
    """Pearson's chi-square over all captions of at most 3 tokens; the seed is fixed."""
    decoder, images, num_captions = random_decoder(4, 6), random_images(4, 1), 20_000
    for layer in decoder.parameters():
        layer.data.mul_(0.5)  # less certain, so that many captions are likely
    constraints = Constraints(3)
    config = GenerationConfig("sample", num_captions=num_captions, seed=1)
    found = drawn(decoder, images, config, constraints)
    counts = Counter(captions_of(found, 0))
    log_probs = all_captions(decoder, images, 6, constraints)
    assert abs(sum(math.exp(value) for value in log_probs.values()) - 1) < 1e-5
    assert set(counts) <= set(log_probs)
    expected = {c: num_captions * math.exp(value) for c, value in log_probs.items()}
    often = [c for c in expected if expected[c] >= 5]
    assert len(often) > 10
    statistic = sum((counts[c] - expected[c]) ** 2 / expected[c] for c in often)
    degrees = len(often) - 1 + (len(often) < len(expected))
    # Wilson and Hilferty: the cube root of chi-square / degrees is nearly normal.
    z = (statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))
    assert abs(z) / math.sqrt(2 / (9 * degrees)) < 4


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.3, 2.0),
    top_k=st.integers(0, 5),
    top_p=st.floats(0.1, 1.0),
)
@torch.no_grad()
def test_samples_are_scored_by_the_model_itself(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    decoder, images = random_decoder(seed, 9), random_images(seed, 2)
    config = GenerationConfig("sample", num_captions=3, temperature=temperature, top_k=top_k,
                              top_p=top_p, seed=seed)  # fmt: skip
    constraints = Constraints(4, no_repeat_ngram=1)
    found = drawn(decoder, images, config, constraints)
    torch.testing.assert_close(found.scores, found.log_probs.sum(dim=2))
    for image in range(2):
        sums = all_captions(decoder, one_image(images, image), 9, constraints)
        for caption, score in zip(captions_of(found, image), found.scores[image], strict=True):
            assert abs(sums[caption] - float(score)) < 1e-4


def test_a_low_temperature_or_one_token_is_greedy() -> None:
    decoder, images = random_decoder(6, 12), random_images(6, 5)
    expected = greedy(decoder, images, Constraints(8))
    for config in (
        GenerationConfig("sample", temperature=1e-6),
        GenerationConfig("sample", top_k=1),
    ):
        assert torch.equal(drawn(decoder, images, config, Constraints(8)).tokens, expected.tokens)
