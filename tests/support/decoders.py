"""Small decoders with random weights, and all captions that they can generate."""

from collections.abc import Iterator

import torch

from pipeline.config.model import DecoderConfig
from pipeline.generation.captions import Captions
from pipeline.generation.constraints import Constraints
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


def one_image(images: Encoded, number: int) -> Encoded:
    return Encoded(images.pooled[number : number + 1])


def next_log_probs(
    decoder: RecurrentDecoder, token: int, state: object
) -> tuple[torch.Tensor, object]:
    """(V,) log-probabilities of the token after `token`, and the new state."""
    states, state = decoder.step(torch.tensor([token]), state)
    scores = decoder.to_words(states)[0].detach()
    scores[[PAD, BOS]] = -torch.inf
    return scores.log_softmax(dim=0), state


def all_captions(
    decoder: RecurrentDecoder, image: Encoded, vocab_size: int, constraints: Constraints
) -> dict[tuple[int, ...], float]:
    """The sum of log-probabilities of every caption that keeps the rules, a token at a time."""

    def grown(
        tokens: tuple[int, ...], total: float, state: object
    ) -> Iterator[tuple[tuple[int, ...], float]]:
        log_probs, state = next_log_probs(decoder, (BOS, *tokens)[-1], state)
        values = log_probs.tolist()
        for token in allowed(constraints, list(tokens), vocab_size):
            longer, value = (*tokens, token), total + values[token]
            if token == EOS or len(longer) == constraints.max_tokens:
                yield longer, value
            else:
                yield from grown(longer, value, state)

    return dict(grown((), 0.0, decoder.start(image)))


def allowed(constraints: Constraints, tokens: list[int], vocab_size: int) -> list[int]:
    """The tokens that may follow, by the words of the rules."""
    forbidden = [s for group in constraints.forbidden for s in group.tolist()]
    bad_endings = [s for group in constraints.bad_endings for s in group.tolist()]

    def ends_in(caption: list[int], sequences: list[list[int]]) -> bool:
        return any(caption[-len(s) :] == s for s in sequences)

    def repeats(caption: list[int], n: int) -> bool:
        ngrams = [tuple(caption[i : i + n]) for i in range(len(caption) - n + 1)]
        return n > 0 and ngrams[-1:] != [] and ngrams[-1] in ngrams[:-1]

    def good(token: int) -> bool:
        if token in constraints.closing and ends_in(tokens, bad_endings):
            return False
        if token == EOS:
            return len(tokens) >= constraints.min_tokens
        longer = [*tokens, token]
        cut = len(longer) == constraints.max_tokens
        return not (
            ends_in(longer, forbidden)
            or repeats(longer, constraints.no_repeat_ngram)
            or (cut and ends_in(longer, bad_endings))
        )

    return [t for t in range(vocab_size) if t not in (PAD, BOS) and good(t)] or [EOS]


def captions_of(found: Captions, image: int) -> list[tuple[int, ...]]:
    """The captions of an image without padding."""
    rows = found.tokens[image].tolist()
    return [tuple(token for token in row if token != PAD) for row in rows]
