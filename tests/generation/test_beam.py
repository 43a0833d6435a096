"""Beam search over any decoder."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.model import DecoderConfig
from pipeline.generation.beam import Captions, beam_search
from pipeline.generation.greedy import greedy
from pipeline.model.decoders.recurrent import RecurrentDecoder
from pipeline.model.protocols import Encoded
from shards.tokenizer import BOS, EOS, PAD

DIM = 8


def random_decoder(seed: int, vocab_size: int, kind: str = "lstm") -> RecurrentDecoder:
    """A decoder whose next token depends much on the tokens before, and on the image."""
    torch.manual_seed(seed)
    decoder = RecurrentDecoder(DecoderConfig(kind, DIM), DIM, vocab_size)  # type: ignore[arg-type]
    torch.nn.init.normal_(decoder.to_words.weight, std=2.0)
    torch.nn.init.normal_(decoder.embed.weight, std=2.0)
    return decoder.eval()


def random_images(seed: int, num_images: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    return Encoded(torch.randn(num_images, DIM, generator=generator))


def all_captions(
    decoder: RecurrentDecoder, image: Encoded, vocab_size: int, max_tokens: int
) -> dict[tuple[int, ...], float]:
    """The sum of log-probabilities of every caption that can be generated, a token at a time."""
    sums: dict[tuple[int, ...], float] = {}
    growing = [((), decoder.start(image), BOS, 0.0)]
    while growing:
        tokens, state, last, total = growing.pop()
        states, state = decoder.step(torch.tensor([last]), state)
        scores = decoder.to_words(states)[0]
        scores[[PAD, BOS]] = -torch.inf
        log_probs = scores.log_softmax(dim=0).tolist()
        for token in set(range(vocab_size)) - {PAD, BOS}:
            longer, log_prob = (*tokens, token), total + log_probs[token]
            if token == EOS or len(longer) == max_tokens:
                sums[longer] = log_prob
            else:
                growing.append((longer, state, token, log_prob))
    return sums


def captions_of(found: Captions, image: int) -> list[tuple[int, ...]]:
    """The captions of an image without padding."""
    rows = found.tokens[image].tolist()
    return [tuple(token for token in row if token != PAD) for row in rows]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(4, 6),
    max_tokens=st.integers(1, 5),
    length_penalty=st.floats(0.0, 2.0),
)
@torch.no_grad()
def test_a_beam_wide_enough_finds_the_best_of_all_captions(
    seed: int, vocab_size: int, max_tokens: int, length_penalty: float
) -> None:
    decoder, images = random_decoder(seed, vocab_size), random_images(seed, 2)
    num_captions = (vocab_size - 2) ** max_tokens
    found = beam_search(
        decoder, images, max_tokens, num_captions, min(4, num_captions), length_penalty
    )
    for image in range(2):
        alone = Encoded(images.pooled[image : image + 1])
        sums = all_captions(decoder, alone, vocab_size, max_tokens)
        scores = {c: s / ((5 + len(c)) / 6) ** length_penalty for c, s in sums.items()}
        best = sorted(scores, key=lambda caption: -scores[caption])[:4]
        assert captions_of(found, image)[: len(best)] == best
        expected = torch.tensor([scores[caption] for caption in best])
        torch.testing.assert_close(found.scores[image, : len(best)], expected)
        assert (found.scores[image, len(best) :] == -torch.inf).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["lstm", "gru"]))
def test_one_beam_is_greedy(seed: int, kind: str) -> None:
    decoder, images = random_decoder(seed, 12, kind), random_images(seed, 5)
    found = beam_search(decoder, images, max_tokens=8, width=1)
    assert torch.equal(found.tokens[:, 0], greedy(decoder, images, max_tokens=8))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6), width=st.integers(2, 6), length_penalty=st.sampled_from([0.0, 0.7])
)
def test_the_best_are_distinct_in_order_and_scored_by_their_tokens(
    seed: int, width: int, length_penalty: float
) -> None:
    decoder, images = random_decoder(seed, 12), random_images(seed, 3)
    found = beam_search(decoder, images, 7, width, width, length_penalty)
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
    found = beam_search(decoder, images, max_tokens=6, width=3, num_best=3)
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
    together = beam_search(decoder, images, max_tokens=6, width=4, num_best=4)
    for start, row in itertools.product(range(0, 14, batch_size), range(batch_size)):
        part = Encoded(images.pooled[start : start + batch_size])
        alone = beam_search(decoder, part, max_tokens=6, width=4, num_best=4)
        assert captions_of(alone, row) == captions_of(together, start + row)
