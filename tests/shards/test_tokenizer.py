"""Tokenizers: words and byte pairs, their special tokens, and their files."""

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.tokenizer import (
    SPECIAL_TOKENS,
    UNK,
    decode,
    encode,
    load_tokenizer,
    readable,
    train_bpe_tokenizer,
    train_word_tokenizer,
)


def test_words_are_lower_case_with_punctuation_split_off() -> None:
    tokenizer = train_word_tokenizer(["A dog's ball, red.", "a DOG runs."], min_count=1)
    words = [tokenizer.id_to_token(i) for i in encode(tokenizer, "A Dog's ball!")]
    assert words == ["a", "dog", "'", "s", "ball", "<unk>"]
    assert decode(tokenizer, encode(tokenizer, "A dog's ball, red.")) == "a dog's ball, red."


def test_rare_words_become_unk_and_special_ids_are_fixed(tmp_path: Path) -> None:
    tokenizer = train_word_tokenizer(["a cat", "a cat", "a zebra"], min_count=2)
    assert encode(tokenizer, "a zebra") == [4, UNK]
    assert [tokenizer.id_to_token(i) for i in range(4)] == list(SPECIAL_TOKENS)
    tokenizer.save(str(tmp_path / "t.json"))
    assert load_tokenizer(tmp_path / "t.json").get_vocab() == tokenizer.get_vocab()


def test_text_that_looks_like_a_special_token_is_text() -> None:
    tokenizer = train_word_tokenizer(["a <pad> sign"], min_count=1)
    assert min(encode(tokenizer, "<pad> <eos>")) >= UNK


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_encodes_without_marks(captions: list[str]) -> None:
    tokenizer = train_word_tokenizer(["a b", *captions], min_count=1)
    for caption in captions:
        assert all(i > UNK for i in encode(tokenizer, caption))


RUSSIAN = ["Собака бежит по траве.", "СОБАКА спит на ТРАВЕ."] * 5
JAPANESE = ["猫が窓辺で眠っている。", "犬が芝生を走っている。"] * 5


@pytest.mark.parametrize("captions", [RUSSIAN, JAPANESE])
def test_bpe_speaks_any_language(captions: list[str]) -> None:
    tokenizer = train_bpe_tokenizer(captions, min_count=2, vocab_size=400)
    assert tokenizer.get_vocab_size() <= 400
    assert [tokenizer.id_to_token(i) for i in range(4)] == list(SPECIAL_TOKENS)
    for caption in captions:
        ids = encode(tokenizer, caption)
        assert min(ids) > UNK
        assert decode(tokenizer, ids) == caption.lower()
        assert len(ids) < len(caption.encode()) / 2
    again = train_bpe_tokenizer(captions, min_count=2, vocab_size=400)
    assert again.to_str() == tokenizer.to_str()


@given(st.text(min_size=1, max_size=8))
def test_pieces_are_shown_as_letters_or_as_bytes(text: str) -> None:
    tokenizer = train_bpe_tokenizer(["the dog"] * 3, min_count=2, vocab_size=270, keep_case=True)
    shown = [readable(tokenizer, token) for token in encode(tokenizer, f"the {text}")]
    assert shown[0] == "\u2423the"
    escaped = "".join(shown[1:]).replace("\u2423", " ").encode()
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda found: bytes.fromhex(found[1].decode()), escaped)
    assert raw == unicodedata.normalize("NFC", f" {text}").encode()


def test_words_of_any_language_are_folded() -> None:
    for one, other in (
        ("Straße", "STRASSE"), ("Σίσυφος", "ΣΊΣΥΦΟΣ"), ("собака", "СОБАКА"), ("ﬁsh", "FISH"),
        ("cafe\u0301", "CAFÉ"), ("İ", "i\u0307"),
    ):  # fmt: skip
        tokenizer = train_word_tokenizer([one, other], min_count=2)
        assert encode(tokenizer, one) == encode(tokenizer, other) == [4]


@given(st.text(max_size=60))
def test_bpe_gives_any_text_back(text: str) -> None:
    tokenizer = train_bpe_tokenizer(["a red circle", text], min_count=1, vocab_size=300)
    folded = tokenizer.normalizer.normalize_str(text)
    assert decode(tokenizer, encode(tokenizer, text)).strip() == folded.strip()


def test_a_bpe_vocabulary_must_hold_the_bytes() -> None:
    with pytest.raises(ValueError, match="260 or more"):
        train_bpe_tokenizer(["a"], min_count=1, vocab_size=100)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version":"1.0"}'])
def test_a_broken_tokenizer_is_refused_with_its_path(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(path)
