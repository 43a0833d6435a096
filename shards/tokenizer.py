"""Captions <-> token ids, by the `tokenizers` library. A vocabulary is one tokenizer.json file.

Word level: NFC, lower case, split at white space, every punctuation mark a word of its own. Words
rarer than `min_count` become UNK. Ids do not include begin and end marks: who needs them adds BOS
and EOS.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

PAD, BOS, EOS, UNK = 0, 1, 2, 3

# Plain vocabulary entries, not the library's "special tokens": those would be recognised inside a
# caption that happens to contain their text. The pre-tokenizer splits "<" off: these never match.
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


def train_word_tokenizer(captions: Iterable[str], min_count: int) -> Tokenizer:
    """Build a word-level vocabulary: words by falling count, then alphabetically.

    Args:
        captions: raw captions.
        min_count: words seen less often become UNK.
    Raises:
        ValueError: no word is frequent enough.
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=SPECIAL_TOKENS[UNK]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(cleanup=True),  # joins words; " ." becomes "."
            decoders.Fuse(),
            decoders.Replace(" ' ", "'"),
            decoders.Replace(" - ", "-"),
        ]
    )
    counts: Counter[str] = Counter()
    for caption in captions:
        normal = tokenizer.normalizer.normalize_str(caption)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    frequent = [word for word, count in counts.items() if count >= min_count]
    if not frequent:
        raise ValueError(f"no word stands {min_count} times or more in the captions")
    words = [*SPECIAL_TOKENS, *sorted(frequent, key=lambda word: (-counts[word], word))]
    tokenizer.model = models.WordLevel(
        {word: number for number, word in enumerate(words)}, unk_token=SPECIAL_TOKENS[UNK]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, caption: str) -> list[int]:
    """Token ids of a caption, without begin and end marks."""
    return list(tokenizer.encode(caption, add_special_tokens=False).ids)


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The caption of token ids: stops at the first EOS, leaves PAD and BOS out."""
    words = []
    for token in ids:
        if token == EOS:
            break
        if token not in (PAD, BOS):
            words.append(token)
    return str(tokenizer.decode(words, skip_special_tokens=False))


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json.

    Raises:
        ValueError: no such file, not a tokenizer, or the special ids are not where they must be.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such tokenizer; make one with `python -m shards tokenizer`")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: not a tokenizers file ({error})") from error
    for number, token in enumerate(SPECIAL_TOKENS):
        if tokenizer.token_to_id(token) != number:
            raise ValueError(f"{path}: {token} must have id {number}; make it with this program")
    return tokenizer


def tokenizer_sha256(path: Path) -> str:
    """Digest that ties shards and checkpoints to one vocabulary."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
