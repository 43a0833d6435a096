"""Beam search over any decoder, and its groups."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decoders import (
    all_captions,
    captions_of,
    next_log_probs,
    one_image,
    random_decoder,
    random_images,
)

from pipeline.config.generation import GenerationConfig
from pipeline.generation.beam import beam_search
from pipeline.generation.captions import Captions
from pipeline.generation.constraints import Constraints, sequences
from pipeline.generation.sampling import greedy
from pipeline.model.decoders.recurrent import RecurrentDecoder
from pipeline.model.protocols import Encoded
from shards.tokenizer import BOS, EOS, PAD, UNK


def search(
    decoder: RecurrentDecoder,
    images: Encoded,
    constraints: Constraints | int,
    width: int,
    num_best: int = 1,
    length_penalty: float = 0.0,
) -> Captions:
    if isinstance(constraints, int):
        constraints = Constraints(constraints)
    config = GenerationConfig(
        method="beam", beam=width, num_captions=num_best, length_penalty=length_penalty
    )
    return beam_search(decoder, images, constraints, config)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(4, 6),
    max_tokens=st.integers(1, 5),
    length_penalty=st.floats(0.0, 2.0),
    constrained=st.booleans(),
)
@torch.no_grad()
def test_a_beam_wide_enough_finds_the_best_of_all_captions(
    seed: int, vocab_size: int, max_tokens: int, length_penalty: float, constrained: bool
) -> None:
    decoder, images = random_decoder(seed, vocab_size), random_images(seed, 2)
    constraints = Constraints(max_tokens)
    if constrained:
        endings = sequences([[UNK], [vocab_size - 1, vocab_size - 1]], torch.device("cpu"))
        constraints = Constraints(max_tokens, min(2, max_tokens), 2, bad_endings=endings)
    num_captions = (vocab_size - 2) ** max_tokens
    num_best = min(4, num_captions)
    found = search(decoder, images, constraints, num_captions, num_best, length_penalty)
    for image in range(2):
        sums = all_captions(decoder, one_image(images, image), vocab_size, constraints)
        scores = {c: s / ((5 + len(c)) / 6) ** length_penalty for c, s in sums.items()}
        best = sorted(scores, key=lambda caption: -scores[caption])[:num_best]
        assert captions_of(found, image)[: len(best)] == best
        expected = torch.tensor([scores[caption] for caption in best])
        torch.testing.assert_close(found.scores[image, : len(best)], expected)
        assert (found.scores[image, len(best) :] == -torch.inf).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["lstm", "gru"]))
def test_one_beam_is_greedy(seed: int, kind: str) -> None:
    decoder, images = random_decoder(seed, 12, kind), random_images(seed, 5)
    found, expected = search(decoder, images, 8, 1), greedy(decoder, images, Constraints(8))
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.log_probs, expected.log_probs)
    torch.testing.assert_close(found.scores, expected.scores)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6), width=st.integers(2, 6), length_penalty=st.sampled_from([0.0, 0.7])
)
def test_the_best_are_distinct_in_order_and_scored_by_their_tokens(
    seed: int, width: int, length_penalty: float
) -> None:
    decoder, images = random_decoder(seed, 12), random_images(seed, 3)
    found = search(decoder, images, 7, width, width, length_penalty)
    for image in range(3):
        captions = captions_of(found, image)
        assert len(set(captions)) == width
    lengths = (found.tokens != PAD).sum(dim=2)
    scores = found.log_probs.sum(dim=2) / ((5.0 + lengths) / 6.0) ** length_penalty
    torch.testing.assert_close(found.scores, scores)
    assert (found.scores.diff(dim=1) <= 0).all()
    assert torch.equal(found.log_probs != 0, found.tokens != PAD)
    ended = found.tokens == EOS
    assert (ended.sum(dim=2) <= 1).all()
    assert (ended.any(dim=2) | (lengths == 7)).all()


@torch.no_grad()
def test_log_probabilities_are_those_of_teacher_forcing() -> None:
    decoder, images = random_decoder(3, 12), random_images(3, 4)
    found = search(decoder, images, 6, 3, 3)
    begin = torch.full((4, 3, 1), BOS)
    states = decoder(images, torch.cat([begin, found.tokens[..., :-1]], dim=2)).states
    scores = decoder.to_words(states)
    scores[..., [PAD, BOS]] = -torch.inf
    expected = scores.log_softmax(dim=2).view(4, 3, -1, 12)
    expected = expected.gather(3, found.tokens[..., None])[..., 0]
    real = found.tokens != PAD
    torch.testing.assert_close(found.log_probs[real], expected[real])


@pytest.mark.parametrize("batch_size", [1, 7])
def test_neighbours_change_nothing(batch_size: int) -> None:
    decoder, images = random_decoder(5, 12), random_images(5, 14)
    together = search(decoder, images, 6, 4, 4)
    for start, row in itertools.product(range(0, 14, batch_size), range(batch_size)):
        part = Encoded(images.pooled[start : start + batch_size])
        alone = search(decoder, part, 6, 4, 4)
        assert captions_of(alone, row) == captions_of(together, start + row)


def in_groups(
    decoder: RecurrentDecoder, images: Encoded, width: int, groups: int, diversity: float
) -> Captions:
    """All captions that `groups` groups of `width` beams find."""
    beam = groups * width
    config = GenerationConfig("diverse_beam", beam=beam, groups=groups, diversity=diversity,
                              num_captions=beam, length_penalty=0.7)  # fmt: skip
    return beam_search(decoder, images, Constraints(6), config)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 4), diversity=st.floats(0.0, 3.0))
def test_one_group_is_a_beam(seed: int, width: int, diversity: float) -> None:
    decoder, images = random_decoder(seed, 12), random_images(seed, 3)
    found = in_groups(decoder, images, width, 1, diversity)
    for ours, theirs in zip(found[:3], search(decoder, images, 6, width, width, 0.7), strict=False):
        assert torch.equal(ours, theirs)  # type: ignore[arg-type]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 3), groups=st.integers(2, 3))
def test_without_diversity_each_group_is_a_beam(seed: int, width: int, groups: int) -> None:
    decoder, images = random_decoder(seed, 12), random_images(seed, 3)
    found = in_groups(decoder, images, width, groups, 0.0)
    alone = search(decoder, images, 6, width, width, 0.7)
    for image in range(3):
        expected = [c for c in captions_of(alone, image) for _ in range(groups)]
        assert captions_of(found, image) == expected


def groups_by_hand(
    decoder: RecurrentDecoder, image: Encoded, vocab_size: int, groups: int, diversity: float
) -> list[tuple[int, ...]]:
    """Groups of one beam: greedy decoding, in turn at each step, that avoids earlier groups."""
    captions: list[list[int]] = [[] for _ in range(groups)]
    states = [decoder.start(image)] * groups
    for _ in range(6):
        taken: list[int] = []
        for number, caption in enumerate(captions):
            if caption[-1:] == [EOS]:
                continue
            last = (caption or [BOS])[-1]
            log_probs, states[number] = next_log_probs(decoder, last, states[number])
            for token in taken:
                log_probs[token] -= diversity
            caption.append(int(log_probs.argmax()))
            if caption[-1] != EOS:
                taken.append(caption[-1])
    return [tuple(caption) for caption in captions]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.integers(2, 4), diversity=st.floats(0.1, 6.0))
@torch.no_grad()
def test_groups_avoid_the_tokens_of_earlier_groups(
    seed: int, groups: int, diversity: float
) -> None:
    decoder, images = random_decoder(seed, 9), random_images(seed, 2)
    found = in_groups(decoder, images, 1, groups, diversity)
    for image in range(2):
        expected = groups_by_hand(decoder, one_image(images, image), 9, groups, diversity)
        assert sorted(captions_of(found, image)) == sorted(expected)
    assert (found.scores.diff(dim=1) <= 0).all()


def test_the_best_of_each_group_comes_before_any_second_best() -> None:
    decoder, images = random_decoder(2, 12), random_images(2, 8)
    everything = in_groups(decoder, images, 2, 3, 4.0)
    config = GenerationConfig("diverse_beam", beam=6, groups=3, diversity=4.0, num_captions=3,
                              length_penalty=0.7)  # fmt: skip
    found = beam_search(decoder, images, Constraints(6), config)
    different = 0
    for image in range(8):
        chosen, listed = captions_of(found, image), captions_of(everything, image)
        assert chosen[0] == listed[0]
        assert set(chosen) <= set(listed)
        different += chosen != listed[:3]
    assert different
