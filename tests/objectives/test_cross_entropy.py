"""The cross-entropy objective equals the naive one, which scores every position at once."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.data.batch import Batch, collate_captions
from pipeline.model.captioner import Captioner
from pipeline.model.decoders import DECODERS
from pipeline.objectives.cross_entropy import CrossEntropy
from pipeline.objectives.projection import cross_entropy
from shards.tokenizer import PAD

VOCAB = 11


def config_of(kind: Any) -> ModelConfig:
    return ModelConfig(
        dim=8,
        encoder=EncoderConfig(name="shufflenet_v2_x0_5", hidden_dim=8, dropout=0.0),
        decoder=DecoderConfig(
            kind,
            hidden_dim=8,
            attention_dim=6,
            layers=1,
            heads=2,
            dropout=0.0,
            attention_penalty=0.0,
        ),
    )


def naive_loss(captioner: Captioner, batch: Batch) -> tuple[torch.Tensor, float]:
    """Sum and number of tokens, from the scores of all positions."""
    scores = captioner.decoder.to_words(captioner(batch.images, batch.tokens[..., :-1]).states)
    targets, weights = batch.tokens[..., 1:].flatten(), batch.weights.flatten()
    losses = functional.cross_entropy(
        scores.flatten(0, 1), targets, ignore_index=PAD, reduction="none"
    ).view(len(weights), -1)
    counts = (batch.tokens[..., 1:].flatten(0, 1) != PAD).sum(dim=1) * weights
    return (losses.sum(dim=1) * weights).sum(), float(counts.sum())


def captioner_and_batch(kind: Any, captions: list[list[list[int]]]) -> tuple[Captioner, Batch]:
    torch.manual_seed(0)
    captioner = Captioner(config_of(kind), VOCAB).double().eval()
    tokens, weights = collate_captions(captions, 3)
    images = torch.randint(0, 256, (len(captions), 32, 32, 3), dtype=torch.uint8)
    return captioner, Batch(images, tokens, weights, [], [])


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


@pytest.mark.parametrize(
    "captions",
    [
        [[[5, 6, 7], [8]], [[4, 4, 4, 4, 9, 10]], []],  # uneven lengths, and empty slots
        [[[5], [6], [7]], [[8], [9], [10]]],  # no padding
        [[], []],  # a micro-batch of empty slots alone
    ],
)
@pytest.mark.parametrize("kind", DECODERS)
def test_it_equals_the_loss_over_all_positions(kind: Any, captions: list[list[list[int]]]) -> None:
    captioner, batch = captioner_and_batch(kind, captions)
    objective = CrossEntropy(captioner)
    expected, num_tokens = naive_loss(captioner, batch)
    expected.backward()
    expected_gradients = gradients(captioner)
    prepared = objective.prepare(batch)
    loss = objective(prepared.inputs).sum
    loss.backward()
    assert prepared.num_terms == num_tokens
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    found = gradients(captioner)
    assert set(found) == set(expected_gradients)  # DDP waits for each of them
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-10, atol=1e-12)


@given(
    num_tokens=st.integers(0, 40),
    width=st.integers(1, 9),
    vocab=st.integers(1, 30),
    chunk_scores=st.integers(1, 200),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 99),
)
def test_chunks_change_nothing(
    num_tokens: int, width: int, vocab: int, chunk_scores: int, smoothing: float, seed: int
) -> None:
    torch.manual_seed(seed)
    states = torch.randn(num_tokens, width, dtype=torch.float64, requires_grad=True)
    to_words = nn.Linear(width, vocab, dtype=torch.float64)
    targets = torch.randint(0, vocab, (num_tokens,))
    weights = torch.randn(num_tokens) * torch.randint(0, 2, (num_tokens,))  # also 0 and negative
    parameters = (states, to_words.weight, to_words.bias)
    losses = functional.cross_entropy(
        to_words(states), targets, reduction="none", label_smoothing=smoothing
    )
    expected = (losses * weights).sum()
    found = cross_entropy(states, to_words, targets, weights, smoothing, chunk_scores)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    scale = 3.0  # what the gradient of the loss is multiplied by
    for got, want in zip(
        torch.autograd.grad(found * scale, parameters),
        torch.autograd.grad(expected * scale, parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_its_gradients_are_those_of_its_values() -> None:
    torch.manual_seed(0)
    to_words = nn.Linear(3, 5, dtype=torch.float64)
    targets, weights = torch.randint(0, 5, (7,)), torch.rand(7)

    def loss(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        linear = nn.Linear(3, 5, dtype=torch.float64)
        del linear.weight, linear.bias
        linear.weight, linear.bias = weight, bias
        return cross_entropy(states, linear, targets, weights, chunk_scores=15)

    states = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (states, to_words.weight, to_words.bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_gradients_differ_by_rounding_alone(dtype: torch.dtype) -> None:
    """Also those of words that are hardly probable: 1e-9 would be 0 in float16."""
    torch.manual_seed(0)
    states = torch.tanh(torch.randn(64, 32)).requires_grad_()
    to_words = nn.Linear(32, 100)
    with torch.no_grad():
        to_words.bias[50:] = -15.0
    targets, weights = torch.randint(0, 50, (64,)), torch.ones(64)
    parameters = (states, to_words.weight, to_words.bias)
    expected = cross_entropy(states, to_words, targets, weights)
    exact = torch.autograd.grad(expected, parameters)
    with torch.autocast("cpu", dtype):
        loss = cross_entropy(states, to_words, targets, weights)
    found = torch.autograd.grad(loss, parameters)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0.0)
    for got, want in zip(found, exact, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.02 * want.norm()
    rare, exact_rare = found[1][50:], exact[1][50:]
    assert 0 < exact_rare.norm() < 1e-4
    assert (rare - exact_rare).norm() < 0.05 * exact_rare.norm()
