"""Constraints: which tokens are left, compared with the words of the rules."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.decoders import allowed
from tokenizers import Tokenizer

from pipeline.config.generation import GenerationConfig
from pipeline.generation.constraints import Constraints, sequences
from shards.tokenizer import BOS, EOS, PAD, train_bpe_tokenizer, train_word_tokenizer

VOCAB = 7
CPU = torch.device("cpu")
WORDS = st.integers(EOS + 1, VOCAB - 1)
SEQUENCES = st.lists(st.lists(WORDS, min_size=1, max_size=3), max_size=4)


def left(constraints: Constraints, captions: list[list[int]], step: int) -> list[list[int]]:
    """The tokens that are left to each of some captions of `step` tokens."""
    scores = torch.zeros(len(captions), VOCAB)
    scores[:, [PAD, BOS]] = -torch.inf
    # What lies beyond `step` must not matter.
    tokens = torch.full((len(captions), constraints.max_tokens), EOS + 1)
    tokens[:, :step] = torch.tensor(captions).view(len(captions), step)
    constraints.mask(scores, tokens, step)
    assert set(scores.unique().tolist()) <= {0.0, -torch.inf}
    return [torch.nonzero(row == 0.0).flatten().tolist() for row in scores]


@given(st.data())
def test_the_tokens_that_are_left_are_those_that_the_rules_allow(data: st.DataObject) -> None:
    max_tokens = data.draw(st.integers(1, 6))
    step = data.draw(st.integers(0, max_tokens - 1))
    constraints = Constraints(
        max_tokens,
        data.draw(st.integers(0, max_tokens)),
        data.draw(st.integers(0, 4)),
        sequences(data.draw(SEQUENCES), CPU),
        sequences(data.draw(SEQUENCES), CPU),
        torch.tensor([EOS, *data.draw(st.lists(WORDS, max_size=2))]),
    )
    caption = st.lists(WORDS, min_size=step, max_size=step)
    captions = data.draw(st.lists(caption, min_size=1, max_size=4))
    expected = [allowed(constraints, tokens, VOCAB) for tokens in captions]
    assert left(constraints, captions, step) == expected


def vocabulary() -> Tokenizer:
    return train_word_tokenizer(["A dog with a t-shirt on the sofa.", "two dogs"], 1)


def words_left(config: GenerationConfig, before: str) -> set[str]:
    tokenizer = vocabulary()
    ids = tokenizer.encode(before, add_special_tokens=False).ids
    scores = torch.zeros(1, tokenizer.get_vocab_size())
    scores[:, [PAD, BOS]] = -torch.inf
    tokens = torch.tensor([ids + [PAD] * 5])
    constraints = Constraints.of(config, tokenizer, CPU)
    constraints.mask(scores, tokens, len(ids))
    return {str(tokenizer.id_to_token(int(i))) for i in torch.nonzero(scores[0] == 0.0)}


def test_settings_name_words_of_the_vocabulary() -> None:
    everything = words_left(GenerationConfig(), "a dog with")
    assert "<eos>" in everything
    assert everything - words_left(GenerationConfig(block_unk=True), "a") == {"<unk>"}
    forbidden = GenerationConfig(forbidden_words="Dog T-shirt giraffe")
    assert everything - words_left(forbidden, "a") == {"dog"}
    assert everything - words_left(forbidden, "a t-") == {"dog", "shirt"}
    endings = GenerationConfig(bad_endings=True)
    assert everything - words_left(endings, "a dog with") == {"<eos>", "."}
    assert words_left(endings, "a dog") == everything


def test_a_caption_that_is_cut_does_not_end_badly_either() -> None:
    endings = GenerationConfig(bad_endings=True, max_tokens=3)
    gone = words_left(GenerationConfig(), "two dogs") - words_left(endings, "two dogs")
    assert gone == {"a", "with", "on", "the"}


def test_words_of_several_pieces_are_forbidden_at_their_last_piece() -> None:
    tokenizer = train_bpe_tokenizer(["a dog", "a dog", "dim"], 2, 4 + 256 + 2)
    constraints = Constraints.of(GenerationConfig(forbidden_words="dim"), tokenizer, CPU)
    (group,) = constraints.forbidden
    assert group.shape[1] > 1
    pieces = group[0]
    scores = torch.zeros(2, tokenizer.get_vocab_size())
    scores[:, PAD] = -torch.inf
    tokens = torch.stack([pieces, pieces.roll(1)])
    constraints.mask(scores, tokens, len(pieces) - 1)
    assert (scores == -torch.inf).sum(dim=1).tolist() == [2, 1]
    assert scores[0, pieces[-1]] == -torch.inf


def test_unknown_words_stay_possible_unless_they_are_blocked() -> None:
    config = GenerationConfig(forbidden_words="giraffe", bad_endings=True)
    assert "<unk>" in words_left(config, "a")
