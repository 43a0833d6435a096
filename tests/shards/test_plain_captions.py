"""The fast encoder of plain captions gives the ids that the library gives."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from shards.plain_captions import fast_encoder
from shards.tokenizer import (
    encode_all,
    train_bpe_tokenizer,
    train_word_tokenizer,
)

WORDY = train_word_tokenizer(["A man's dog, 3 red_balls! A man; (dog) <unk> x-ray"], min_count=1)
ASCII = st.text(st.characters(max_codepoint=127), max_size=40)
SPEECH = st.lists(st.sampled_from(["A", "man", "'", "s ", "3", "_", "<unk>", "zebra", " ", "-"]))


@given(st.lists(st.one_of(ASCII, SPEECH.map("".join), st.text(max_size=20)), max_size=5))
def test_plain_captions_give_the_ids_of_the_library(captions: list[str]) -> None:
    assert fast_encoder(WORDY)(captions) == encode_all(WORDY, captions)


def test_other_tokenizers_are_the_librarys_alone() -> None:
    bpe = train_bpe_tokenizer(["a red circle"] * 3, min_count=1, vocab_size=270)
    cased = train_word_tokenizer(["a Red circle"], min_count=1)
    cased.normalizer = normalizers.NFC()
    for tokenizer in (bpe, cased):
        captions = ["A red Circle", "a red circle!"]
        assert fast_encoder(tokenizer)(captions) == encode_all(tokenizer, captions)
