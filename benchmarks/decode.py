"""How fast attention decoders write captions and learn them, beside how tutorials do it.

    python benchmarks/decode.py

Beam search, `soft_attention` on grids of 7x7 positions with 1280 features: our generation; one
image at a time with the beams as the batch, as tutorials do it; and the bare arithmetic, that is
the same number of steps and projections to the vocabulary on full blocks without any search.

Teacher forcing, forward and backward of the head and each kind of decoder, on such features with 5
captions an image: our decoders with cross-entropy of the valid tokens; and a row for each caption,
with its own copy of the features, its own grid and its own keys. Its words are computed one by one
in all rows until the longest caption is over (for a transformer, all at once).

Features and weights are random. Before the timing, both ways must give the same captions, and the
same loss and gradients. On a CPU a core is left to other work: threads that share a core with it
wait for each other.

B images, K captions an image, P grid positions, F features, D model width, L tokens, V vocabulary
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plain_decoding import (
    beam_of_one_image,
    loss_of_rows,
    loss_of_rows_at_once,
    with_plain_attention,
)
from benchmarks.side_by_side import (
    Measured,
    Result,
    add_common_options,
    machine_facts,
    ratio,
    report,
    take_turns,
)
from pipeline.config.generation import GenerationConfig
from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.generation.blocks import DECODER_BLOCK, encode_blocks, generate_tokens, take_rows
from pipeline.generation.captions import start_rows
from pipeline.generation.constraints import Constraints
from pipeline.model.captioner import Captioner
from pipeline.model.decoders import DECODERS, make_decoder
from pipeline.model.encoders.heads import GridHead
from pipeline.model.protocols import Encoded
from pipeline.objectives.projection import cross_entropy
from shards.tokenizer import BOS, EOS, PAD, UNK

WIDTH = 512  # of the model, of its states and of the attention
POSITIONS, FEATURES = 49, 1280
VOCABULARY = 3000
MAX_TOKENS = 20
BEAM = GenerationConfig("beam", max_tokens=MAX_TOKENS, beam=5)
KINDS = [kind for kind, decoder in DECODERS.items() if decoder.output == "grid"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512, help="of our beam search")
    parser.add_argument(
        "--single_images", type=int, default=32, help="of the beam search one image at a time"
    )
    parser.add_argument("--batch_size", type=int, default=48, help="images in teacher forcing")
    parser.add_argument("--captions", type=int, default=5, help="captions an image in it")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS, help="decoders in it")
    parser.add_argument("--no_beam", action="store_true", help="measure teacher forcing alone")
    add_common_options(parser)
    parser.set_defaults(repetitions=3)
    arguments = parser.parse_args()
    facts = machine_facts()
    torch.set_num_threads(max(facts["cores"] - 1, 1))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured, ratios = [], {}
    if not arguments.no_beam:
        beam, lengths = measure_beam(arguments, device)
        facts.update(lengths)
        measured += beam
        ratios["beam / one image at a time"] = (ratio(beam, 0, 1), 20)
        ratios["beam / bare arithmetic"] = (ratio(beam, 0, 2), 0.8)
    for kind in arguments.kinds:
        rows = measure_teacher_forcing(arguments, kind, device)
        measured += rows
        ratios[f"teacher forcing / a row a caption, {kind}"] = (ratio(rows, 0, 1), 3)
    facts["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    facts["threads"] = torch.get_num_threads()
    report(facts, measured, ratios, arguments.json)


def measure_beam(
    arguments: argparse.Namespace, device: torch.device
) -> tuple[list[Measured], dict[str, str]]:
    """Our beam search, the tutorials' and the bare arithmetic; and the lengths of the captions."""
    captioner = make_captioner().to(device)
    features = random_features(arguments.images).to(device)
    constraints, ids = Constraints(MAX_TOKENS), range(arguments.images)
    ours = partial(generate_tokens, captioner, features, ids, constraints, BEAM)
    single = features[: arguments.single_images]

    def one_at_a_time() -> list[tuple[list[int], float]]:
        with torch.no_grad():
            grids = (captioner.encoder(image[None]).grid for image in single)
            return [beam_of_one_image(captioner.decoder, g, BEAM.beam, MAX_TOKENS) for g in grids]

    found, expected = ours(), one_at_a_time()
    captions = [[t for t in row if t != PAD] for row in found.tokens[:, 0].tolist()]
    assert captions[: len(single)] == [tokens for tokens, _ in expected]
    scores = torch.tensor([score for _, score in expected])
    torch.testing.assert_close(found.scores[: len(single), 0].cpu(), scores, rtol=1e-4, atol=1e-4)
    bare = partial(bare_arithmetic, captioner, features, count_steps(captioner, ours))
    measured = take_turns(
        {
            "beam search: Capstream": timed(ours, len(features), device),
            "beam search: one image at a time": timed(one_at_a_time, len(single), device),
            "beam search: bare arithmetic": timed(bare, len(features), device),
        },
        arguments.repetitions,
    )
    lengths = sorted(len(caption) for caption in captions)
    middle = lengths[len(lengths) // 2]
    return measured, {"tokens a caption": f"{lengths[0]} to {lengths[-1]}, median {middle}"}


def make_captioner() -> Captioner:
    """A captioner whose captions differ from image to image and have realistic lengths.

    One unit of the LSTM counts the words from a number that depends on the image, and raises the
    score of EOS. The others are random.
    """
    torch.manual_seed(0)
    config = ModelConfig(
        dim=WIDTH,
        encoder=EncoderConfig(name="mobilenet_v2"),  # has 1280 features; its head alone is used
        decoder=DecoderConfig("soft_attention", hidden_dim=WIDTH, attention_dim=WIDTH),
    )
    captioner = Captioner(config, VOCABULARY, pretrained=False).eval()
    decoder = captioner.decoder
    enter, keep, candidate, leave = rows = [gate * WIDTH for gate in range(4)]
    with torch.no_grad():
        decoder.to_words.weight.normal_(std=0.15)
        decoder.embed.weight.normal_(std=2.0)
        for layer in (decoder.to_hidden, decoder.to_cell, decoder.context_to_state):
            layer.weight.mul_(6.0)
        decoder.word_to_gates.weight[rows] = 0.0
        decoder.input_to_gates.weight[rows] = 0.0
        decoder.word_to_gates.bias[[enter, keep, leave]] = 10.0  # open
        decoder.word_to_gates.bias[candidate] = 0.05  # a word adds this to the cell
        decoder.to_cell.weight[0].mul_(0.03)
        for weight in (decoder.hidden_to_state.weight, decoder.context_to_state.weight):
            weight[0] = 0.0
        decoder.hidden_to_state.bias[0] = 0.0
        decoder.hidden_to_state.weight[0, 0] = 1.0
        decoder.embed.weight[:, 0] = 0.0
        decoder.to_words.weight[EOS] = 0.0
        decoder.to_words.weight[EOS, 0] = 60.0
        decoder.to_words.bias[EOS] = -6.0
    return captioner


def random_features(num_images: int) -> torch.Tensor:
    """(B, P, F) float32, at least 0 as a backbone's; positions of an image are alike."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, 1, FEATURES, generator=draw)
    return (images + torch.randn(num_images, POSITIONS, FEATURES, generator=draw)).relu()


def count_steps(captioner: Captioner, generate: Callable[[], object]) -> list[int]:
    """How many steps the decoder makes for each block of images."""
    steps: list[int] = []
    step, start = captioner.decoder.step, captioner.decoder.start

    def counted_start(encoded: Encoded) -> object:
        steps.append(0)
        return start(encoded)

    def counted_step(*values: object) -> object:
        steps[-1] += 1
        return step(*values)

    captioner.decoder.start, captioner.decoder.step = counted_start, counted_step
    generate()
    captioner.decoder.start, captioner.decoder.step = start, step
    return steps


@torch.no_grad()
def bare_arithmetic(captioner: Captioner, features: torch.Tensor, steps: list[int]) -> None:
    """Encode all images; then so many steps and projections for each block, without a search."""
    encoded, decoder = encode_blocks(captioner, features), captioner.decoder
    size = DECODER_BLOCK[features.device.type]
    for number, num_steps in enumerate(steps):
        rows = range(number * size, (number + 1) * size)
        block = take_rows(encoded, [min(row, len(features) - 1) for row in rows])
        state, last = start_rows(decoder, block, BEAM.beam)
        for _ in range(num_steps):
            states, state = decoder.step(last, state)
            decoder.to_words(states)


def measure_teacher_forcing(
    arguments: argparse.Namespace, kind: str, device: torch.device
) -> list[Measured]:
    """Our forward and backward, and those of a row a caption."""
    torch.manual_seed(0)
    config = DecoderConfig(kind=kind, hidden_dim=WIDTH, attention_dim=WIDTH)  # type: ignore[arg-type]
    head, decoder = GridHead(FEATURES, WIDTH, 0.5), make_decoder(config, WIDTH, VOCABULARY)
    ours = nn.ModuleList([head, decoder]).to(device)
    theirs = with_plain_attention(ours)
    features = random_features(arguments.batch_size).to(device)
    tokens = random_tokens(arguments.batch_size, arguments.captions)
    valid = (tokens[..., 1:] != PAD).flatten().nonzero()[:, 0].to(device)  # as the loader finds it
    tokens = tokens.to(device)
    plain = loss_of_rows_at_once if kind == "transformer" else loss_of_rows
    losses = [
        partial(our_loss, *ours, features, tokens, valid),
        partial(plain, *theirs, features, tokens),
    ]
    check_equal([ours, theirs], losses)
    names = [f"{kind}: Capstream", f"{kind}: a row a caption"]
    updates = {
        name: timed(partial(update, model, loss), len(features), device)
        for name, model, loss in zip(names, (ours, theirs), losses, strict=True)
    }
    return take_turns(updates, arguments.repetitions)


def random_tokens(num_images: int, num_captions: int) -> torch.Tensor:
    """(B, K, L) int64 captions whose lengths are spread as those of Flickr8k."""
    draw = torch.Generator().manual_seed(0)
    lengths = 11.8 + 3.9 * torch.randn(num_images, num_captions, generator=draw)
    lengths = lengths.round().long().clamp(4, 30)
    positions = torch.arange(int(lengths.max()) + 2)  # with BOS and EOS
    shape = (num_images, num_captions, len(positions))
    tokens = torch.randint(UNK + 1, VOCABULARY, shape, generator=draw)
    tokens[..., 0] = BOS
    tokens[positions == lengths[..., None] + 1] = EOS
    tokens[positions > lengths[..., None] + 1] = PAD
    return tokens


def our_loss(
    head: nn.Module,
    decoder: nn.Module,
    features: torch.Tensor,
    tokens: torch.Tensor,
    valid: torch.Tensor,
) -> torch.Tensor:
    """Summed cross-entropy as training computes it, (B, P, F) and (B, K, L) -> () float."""
    states = decoder(head(features), tokens[..., :-1]).states
    states = states.flatten(0, 1).index_select(0, valid)
    targets = tokens[..., 1:].flatten().index_select(0, valid)
    return cross_entropy(states, decoder.to_words, targets, torch.ones_like(states[:, 0]))


def check_equal(models: list[nn.Module], losses: list[Callable[[], torch.Tensor]]) -> None:
    """Both ways give the same loss and gradients without dropout, up to rounding."""
    values, gradients = [], []
    for model, loss in zip(models, losses, strict=True):
        model.eval()
        values.append(loss())
        gradients.append(torch.autograd.grad(values[-1], list(model.parameters())))
        model.train()
    torch.testing.assert_close(*values, rtol=1e-5, atol=0.0)
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def update(model: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
    loss().backward()
    model.zero_grad()


def timed(
    work: Callable[[], object], num_images: int, device: torch.device
) -> Callable[[], Result]:
    """Measure the images/s of some work."""

    def measure() -> Result:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        return num_images / (time.perf_counter() - start), {}

    return measure


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
