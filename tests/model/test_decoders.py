"""What every kind of decoder must do, so that training and generation can rely on it."""

import typing

import pytest
import torch
from torch.nn import functional

from pipeline.config.model import DecoderConfig
from pipeline.model.decoders import DECODERS, make_decoder
from pipeline.model.protocols import Decoder, Encoded
from shards.tokenizer import BOS, PAD

DIM, HIDDEN, VOCAB = 8, 8, 11
B, K, L = 3, 4, 6  # images, captions an image, tokens

each_kind = pytest.mark.parametrize("kind", DECODERS)


def decoder_of(kind: str) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(kind=kind, hidden_dim=HIDDEN, attention_dim=6, layers=2, heads=2)
    return make_decoder(config, DIM, VOCAB).double().eval()


def some_images(num_images: int = B) -> Encoded:
    pooled = torch.randn(num_images, DIM, dtype=torch.float64)
    return Encoded(pooled, torch.randn(num_images, 5, DIM, dtype=torch.float64))


def some_tokens() -> torch.Tensor:
    tokens = torch.randint(4, VOCAB, (B, K, L))
    tokens[..., 0] = BOS
    return tokens


def test_the_configuration_offers_the_kinds_that_there_are() -> None:
    assert set(typing.get_args(typing.get_type_hints(DecoderConfig)["kind"])) == set(DECODERS)


@each_kind
def test_stepping_equals_teacher_forcing(kind: str) -> None:
    """For K captions an image, whose rows come from `reorder`."""
    decoder, encoded, tokens = decoder_of(kind), some_images(), some_tokens()
    decoded = decoder(encoded, tokens)
    assert decoded.states.shape == (B * K, L, decoder.to_words.in_features)
    state = decoder.reorder(decoder.start(encoded), torch.arange(B).repeat_interleave(K))
    for position in range(L):
        states, state = decoder.step(tokens[..., position].flatten(), state)
        torch.testing.assert_close(states, decoded.states[:, position])
        if decoded.attention is not None:
            looked = decoder.attention(state)
            torch.testing.assert_close(looked, decoded.attention[:, position])


@each_kind
def test_padding_changes_no_state_before_it(kind: str) -> None:
    decoder, encoded, tokens = decoder_of(kind), some_images(), some_tokens()
    padded = functional.pad(tokens, (0, 4), value=PAD)
    expected = decoder(encoded, tokens).states
    torch.testing.assert_close(decoder(encoded, padded).states[:, :L], expected)


@each_kind
def test_captions_of_all_lengths_give_the_states_of_each_alone(kind: str) -> None:
    decoder, encoded, tokens = decoder_of(kind), some_images(), some_tokens()
    lengths = torch.tensor([[6, 0, 3, 1], [2, 2, 5, 4], [0, 1, 0, 0]])
    tokens[torch.arange(L) >= lengths[..., None]] = PAD
    decoded = decoder(encoded, tokens)
    states = decoded.states.view(B, K, L, -1)
    for image in range(B):
        for caption in range(K):
            length = int(lengths[image, caption])
            if length:
                one = Encoded(encoded.pooled[image : image + 1], encoded.grid[image : image + 1])
                alone = decoder(one, tokens[image : image + 1, caption : caption + 1, :length])
                torch.testing.assert_close(states[image, caption, :length], alone.states[0])
    # And no padding leaks into the gradients.
    mask = torch.arange(L) < lengths[..., None]
    (states * mask[..., None]).sum().backward()
    assert all(p.grad.isfinite().all() for p in decoder.parameters() if p.grad is not None)
    assert not decoder.embed.weight.grad[PAD].any()


@each_kind
def test_an_image_does_not_depend_on_the_others_of_its_batch(kind: str) -> None:
    decoder, encoded, tokens = decoder_of(kind), some_images(), some_tokens()
    alone = Encoded(encoded.pooled[1:2], encoded.grid[1:2])
    states = decoder(encoded, tokens).states[K : 2 * K]
    torch.testing.assert_close(decoder(alone, tokens[1:2]).states, states)


def beam(decoder: Decoder, encoded: Encoded, width: int) -> torch.Tensor:
    """The best `width` beginnings of L tokens for each image, (B, width, L), kept by `reorder`."""
    num_images = len(encoded.pooled)
    first = torch.full((num_images,), BOS)
    states, state = decoder.step(first, decoder.start(encoded))
    total, tokens = decoder.to_words(states).log_softmax(-1).topk(width)  # (B, width) both
    said = tokens[..., None]
    state = decoder.reorder(state, torch.arange(num_images).repeat_interleave(width))
    for _ in range(1, L):
        states, state = decoder.step(said[..., -1].flatten(), state)
        scores = decoder.to_words(states).log_softmax(-1).view(num_images, width, VOCAB)
        total, best = (total[..., None] + scores).flatten(1).topk(width)
        parent = best // VOCAB
        said = said.gather(1, parent[..., None].expand_as(said))
        said = torch.cat([said, (best % VOCAB)[..., None]], dim=-1)
        rows = torch.arange(num_images)[:, None] * width + parent
        state = decoder.reorder(state, rows.flatten())
    return said


def naive_beam(decoder: Decoder, image: Encoded, width: int) -> list[list[int]]:
    """The same for one image, without a state: each beginning is computed anew."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(L):
        longer = []
        for total, said in beams:
            states = decoder(image, torch.tensor([[[BOS, *said]]])).states[0, -1]
            scores = decoder.to_words(states).log_softmax(-1).tolist()
            longer += [(total + score, [*said, token]) for token, score in enumerate(scores)]
        beams = sorted(longer, reverse=True)[:width]
    return [said for _, said in beams]


@each_kind
def test_beams_kept_by_reorder_equal_beams_computed_anew(kind: str) -> None:
    decoder, encoded = decoder_of(kind), some_images()
    decoder.to_words.weight.data *= 8  # random weights hardly prefer any token: beams never cross
    decoder.to_words.bias.data[PAD] = -torch.inf  # no beam may hold what means its end
    found = beam(decoder, encoded, width=5).tolist()
    for image in range(B):
        alone = Encoded(encoded.pooled[image : image + 1], encoded.grid[image : image + 1])
        assert found[image] == naive_beam(decoder, alone, width=5)
