"""Word-level ids of captions in plain ASCII, several times as fast as the library gives them.

Nearly all English captions are plain ASCII, and for those the library's rules come down to lower
case, words of letters and digits, and punctuation marks alone. Packing spends a twentieth of its
time on tokens otherwise. A property test holds both ways to the same ids, and `verify` asks the
library.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from shards.tokenizer import SPECIAL_TOKENS, UNK, encode, encode_all

WORDS = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]")

Encoder = Callable[[Sequence[str]], list[list[int]]]


def fast_encoder(tokenizer: Tokenizer) -> Encoder:
    """A function that gives what `encode_all` gives, faster where the tokenizer allows it."""
    if not _is_word_level(json.loads(tokenizer.to_str())):
        return partial(encode_all, tokenizer)
    ids = tokenizer.get_vocab()

    def encode_captions(captions: Sequence[str]) -> list[list[int]]:
        return [
            [ids.get(word, UNK) for word in WORDS.findall(caption.lower())]
            if caption.isascii() and caption.isprintable()
            else encode(tokenizer, caption)
            for caption in captions
        ]

    return encode_captions


def _is_word_level(spec: dict[str, Any]) -> bool:
    """Whether a tokenizer's own JSON is that of `train_word_tokenizer`, for ASCII at least."""
    steps = (spec["normalizer"] or {}).get("normalizers", [])
    return (
        spec["model"]["type"] == "WordLevel"
        and spec["model"]["unk_token"] == SPECIAL_TOKENS[UNK]
        and spec["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and {"type": "Lowercase"} in steps
        and all(_leaves_ascii(step) for step in steps)
        and not (spec["added_tokens"] or spec["truncation"] or spec["post_processor"])
    )


def _leaves_ascii(step: dict[str, Any]) -> bool:
    """Whether a normalizer does no more to ASCII than lower case does."""
    if step["type"] == "Replace":
        return not step["pattern"].get("String", "").isascii()
    return step["type"] in ("NFC", "Lowercase")
