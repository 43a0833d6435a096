"""Each attention decoder against its paper, written naively: one caption and word at a time."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.config.model import DecoderConfig
from pipeline.model.decoders import make_decoder
from pipeline.model.protocols import Encoded
from shards.tokenizer import BOS, PAD

WIDTH, VOCAB, POSITIONS, HEADS = 8, 11, 5, 2
LENGTHS = ((6, 3, 1), (4, 4, 2))  # of each image's captions, BOS included

Module = nn.Module
Vectors = list[torch.Tensor]


def attend(attention: Module, query: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """The scores of all positions, one by one."""
    return torch.stack([
        attention.to_score.weight[0]
        @ torch.tanh(
            attention.to_keys.weight @ position
            + attention.to_keys.bias
            + attention.to_query.weight @ query
        )
        for position in grid
    ])  # fmt: skip


def average(weights: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return sum(weight * position for weight, position in zip(weights, grid, strict=True))


def lstm(weight: torch.Tensor, bias: torch.Tensor, inputs: torch.Tensor, h: torch.Tensor,
         c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """torch's own cell, whose gates are input, forget, candidate and output."""
    zeros = torch.zeros_like(bias)
    cell = nn.LSTMCell(len(inputs), len(h), dtype=torch.float64)
    parameters = {
        "weight_ih": weight[:, : len(inputs)], "weight_hh": weight[:, len(inputs) :],
        "bias_ih": bias, "bias_hh": zeros,
    }  # fmt: skip
    h, c = torch.func.functional_call(cell, parameters, (inputs[None], (h[None], c[None])))
    return h[0], c[0]


def naive_updown(d: Module, words: Vectors, pooled: torch.Tensor, grid: torch.Tensor) -> Vectors:
    h1 = c1 = h2 = c2 = torch.zeros(WIDTH, dtype=torch.float64)
    states = []
    first = torch.cat(  # columns: h2, mean, word, h1
        [d.hidden_to_gates.weight[:, :WIDTH], d.image_to_gates.weight, d.word_to_gates.weight,
         d.hidden_to_gates.weight[:, WIDTH:]], dim=1,
    )  # fmt: skip
    for word in words:
        h1, c1 = lstm(first, d.word_to_gates.bias, torch.cat([h2, pooled, word]), h1, c1)
        context = average(attend(d.attend, h1, grid).softmax(0), grid)
        weight = d.language_to_gates.weight  # columns: context, h1, h2
        h2, c2 = lstm(weight, d.language_to_gates.bias, torch.cat([context, h1]), h2, c2)
        states.append(h2)
    return states


def naive_soft_attention(
    d: Module, words: Vectors, pooled: torch.Tensor, grid: torch.Tensor
) -> Vectors:
    h, c = d.to_hidden(pooled).tanh(), d.to_cell(pooled).tanh()
    states = []
    weight = torch.cat([d.word_to_gates.weight, d.input_to_gates.weight], dim=1)
    for word in words:
        context = average(attend(d.attend, h, grid).softmax(0), grid)
        context = torch.sigmoid(d.to_gate(h)) * context
        h, c = lstm(weight, d.word_to_gates.bias, torch.cat([word, context]), h, c)
        states.append(word + d.hidden_to_state(h) + d.context_to_state.weight @ context)
    return states


def naive_adaptive(d: Module, words: Vectors, pooled: torch.Tensor, grid: torch.Tensor) -> Vectors:
    h = c = torch.zeros(WIDTH, dtype=torch.float64)
    states = []
    weight = torch.cat(
        [d.word_to_gates.weight, d.image_to_gates.weight, d.hidden_to_gates.weight], dim=1
    )
    bias = d.word_to_gates.bias
    for word in words:
        inputs = torch.cat([word, d.to_global(pooled).relu()])
        gate = torch.sigmoid(weight[4 * WIDTH :] @ torch.cat([inputs, h]) + bias[4 * WIDTH :])
        h, c = lstm(weight[: 4 * WIDTH], bias[: 4 * WIDTH], inputs, h, c)
        sentinel = gate * torch.tanh(c)
        z = attend(d.attend, h, grid)
        key = torch.tanh(d.sentinel_to_key(sentinel) + d.attend.to_query.weight @ h)
        with_sentinel = torch.cat([z, d.attend.to_score(key)]).softmax(0)
        beta = with_sentinel[-1]
        context = average(z.softmax(0), grid)
        states.append(beta * sentinel + (1 - beta) * context + h)
    return states


def naive_att2in(d: Module, words: Vectors, pooled: torch.Tensor, grid: torch.Tensor) -> Vectors:
    h = c = torch.zeros(WIDTH, dtype=torch.float64)
    states = []
    for word in words:
        context = average(attend(d.attend, h, grid).softmax(0), grid)
        i, f, o, z1, z2 = (d.word_to_gates(word) + d.hidden_to_gates.weight @ h).split(WIDTH)
        seen1, seen2 = (d.context_to_cell.weight @ context).split(WIDTH)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.maximum(z1 + seen1, z2 + seen2)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    return states


def heads(query: torch.Tensor, keys: Vectors, values: Vectors) -> torch.Tensor:
    """Scaled dot-product attention of one query, head by head."""
    parts, size = [], WIDTH // HEADS
    for head in range(HEADS):
        at = slice(head * size, (head + 1) * size)
        scores = torch.stack([query[at] @ key[at] / math.sqrt(size) for key in keys])
        parts.append(average(scores.softmax(0), torch.stack([value[at] for value in values])))
    return torch.cat(parts)


def naive_transformer(
    d: Module, words: Vectors, pooled: torch.Tensor, grid: torch.Tensor
) -> Vectors:
    def norm(layer: Module, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (WIDTH,), layer.weight, layer.bias)

    xs = []
    for position, word in enumerate(words):
        half = WIDTH // 2
        angles = [position / 10000 ** (i / half) for i in range(half)]
        code = [*map(math.sin, angles), *map(math.cos, angles)]
        xs.append(word * math.sqrt(WIDTH) + torch.tensor(code, dtype=torch.float64))
    for layer in d.layers:
        qkv = [layer.self_in(norm(layer.self_norm, x)).split(WIDTH) for x in xs]
        image = [layer.image_keys(position).split(WIDTH) for position in grid]
        out = []
        for number, x in enumerate(xs):
            before = qkv[: number + 1]
            seen = heads(qkv[number][0], [k for _, k, _ in before], [v for _, _, v in before])
            x = x + layer.self_out(seen)
            query = layer.image_in(norm(layer.image_norm, x))
            x = x + layer.image_out(heads(query, [k for k, _ in image], [v for _, v in image]))
            first, last = layer.mlp[0], layer.mlp[3]
            out.append(x + last(functional.gelu(first(norm(layer.mlp_norm, x)))))
        xs = out
    return [norm(d.norm, x) for x in xs]


NAIVE: dict[str, Callable[[Module, Vectors, torch.Tensor, torch.Tensor], Vectors]] = {
    "updown": naive_updown,
    "soft_attention": naive_soft_attention,
    "adaptive": naive_adaptive,
    "att2in": naive_att2in,
    "transformer": naive_transformer,
}


@pytest.mark.parametrize("kind", NAIVE)
def test_states_and_gradients_are_those_of_the_paper(kind: str) -> None:
    torch.manual_seed(0)
    config = DecoderConfig(
        kind=kind, hidden_dim=WIDTH, attention_dim=6, layers=2, heads=HEADS, dropout=0.5
    )
    decoder = make_decoder(config, WIDTH, VOCAB).double().eval()
    for parameter in decoder.parameters():  # biases too
        nn.init.normal_(parameter, std=0.5)
    grid = torch.randn(2, POSITIONS, WIDTH, dtype=torch.float64, requires_grad=True)
    encoded = Encoded(grid.mean(dim=1), grid)
    tokens = torch.randint(4, VOCAB, (2, 3, 6))
    tokens[..., 0] = BOS
    valid = torch.arange(6) < torch.tensor(LENGTHS)[..., None]
    tokens[~valid] = PAD
    states = decoder(encoded, tokens).states.unflatten(0, (2, 3))[valid]
    found = torch.autograd.grad(states.sin().sum(), inputs_of(decoder, grid), retain_graph=True)
    naive = []
    for image, lengths in enumerate(LENGTHS):
        for caption, length in enumerate(lengths):
            words = [decoder.embed.weight[token] for token in tokens[image, caption, :length]]
            naive += NAIVE[kind](decoder, words, grid[image].mean(dim=0), grid[image])
    expected = torch.stack(naive)
    torch.testing.assert_close(states, expected, rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(expected.sin().sum(), inputs_of(decoder, grid))
    for got, want in zip(found, gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def inputs_of(decoder: Module, grid: torch.Tensor) -> list[torch.Tensor]:
    """What the states depend on."""
    return [grid, *(p for n, p in decoder.named_parameters() if not n.startswith("to_words"))]
