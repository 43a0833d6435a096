"""Captions <-> token ids, by the `tokenizers` library. A vocabulary is one tokenizer.json file.

Both kinds: NFC, case folding. Word level: split at white space, every punctuation mark a word of
its own; words rarer than `min_count` become UNK. BPE: pieces of UTF-8 bytes, so that nothing is
unknown in any language. Ids do not include begin and end marks: who needs them adds BOS and EOS.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from shards.storage import read_bytes

PAD, BOS, EOS, UNK = 0, 1, 2, 3

# Plain vocabulary entries, not the library's "special tokens": those would be recognised inside a
# caption that happens to contain their text. The pre-tokenizers split "<" off: these never match.
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")

ALWAYS_FOLDED = (
    "\u00df\u03c2"  # sharp s and final sigma: what lower case leaves of living languages
)


def train_word_tokenizer(captions: Sequence[str], min_count: int) -> Tokenizer:
    """Build a word-level vocabulary: words by falling count, then alphabetically.

    Args:
        captions: raw captions.
        min_count: words seen less often become UNK.
    Raises:
        ValueError: no word is frequent enough.
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=SPECIAL_TOKENS[UNK]))
    tokenizer.normalizer = case_folding(captions)
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


def train_bpe_tokenizer(captions: Sequence[str], min_count: int, vocab_size: int) -> Tokenizer:
    """Build a byte-level BPE vocabulary: bytes, and the pieces that stand together most often.

    Args:
        captions: raw captions.
        min_count: pairs seen less often are not joined.
        vocab_size: how many entries at the most, the special ones included.
    Raises:
        ValueError: too small for the 256 bytes and the special entries.
    """
    num_least = len(SPECIAL_TOKENS) + 256
    if vocab_size < num_least:
        raise ValueError(f"--vocab-size must be {num_least} or more for BPE, not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = case_folding(captions)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=min_count,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    # The trainer would make the special entries "special tokens", so they are put in front here.
    vocab = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    vocab |= {token: number + len(vocab) for token, number in model["vocab"].items()}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer.model = models.BPE(vocab, merges)
    return tokenizer


def case_folding(captions: Iterable[str]) -> normalizers.Normalizer:
    """NFC and Unicode's full case folding, as far as these captions can tell the difference.

    The library has lower case only. It differs from folding in 297 characters; each rule costs
    time in every caption, so there is one for those that occur here.
    Source: the Unicode Standard, section 5.18, "Caseless Matching".
    """
    letters = set(ALWAYS_FOLDED).union(*map(str.lower, captions))
    odd = sorted(letter for letter in letters if letter.casefold() != letter)
    return normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            *(normalizers.Replace(letter, letter.casefold()) for letter in odd),
            normalizers.NFC(),  # a folded letter may come in parts
        ]
    )


def encode(tokenizer: Tokenizer, caption: str) -> list[int]:
    """Token ids of a caption, without begin and end marks."""
    return list(tokenizer.encode(caption, add_special_tokens=False).ids)


def encode_all(tokenizer: Tokenizer, captions: Sequence[str]) -> list[list[int]]:
    """`encode` of several captions, in less time."""
    encoded = tokenizer.encode_batch_fast(captions, add_special_tokens=False)
    return [list(encoding.ids) for encoding in encoded]


def unknown_words(tokenizer: Tokenizer, caption: str) -> list[str]:
    """The words of a caption that the vocabulary lacks, as they stand in it."""
    encoding = tokenizer.encode(caption, add_special_tokens=False)
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    return [caption[start:stop] for token, (start, stop) in spans if token == UNK]


def readable(tokenizer: Tokenizer, token: int) -> str:
    """A token as a person reads it; of a BPE piece the letters that it stands for."""
    text = str(tokenizer.id_to_token(token))
    if token <= UNK or not isinstance(tokenizer.model, models.BPE):
        return text
    return str(decoders.ByteLevel().decode([text])).replace(" ", "\u2423")  # an open box


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
    try:
        tokenizer = Tokenizer.from_str(read_bytes(path).decode())
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"{path}: no such tokenizer; make one with `python -m shards tokenizer`, or where a "
            "data set lost its own, run its build again"
        ) from None
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: not a tokenizers file ({error})") from error
    for number, token in enumerate(SPECIAL_TOKENS):
        if tokenizer.token_to_id(token) != number:
            raise ValueError(f"{path}: {token} must have id {number}; make it with this program")
    return tokenizer


def tokenizer_sha256(path: Path) -> str:
    """Digest that ties shards and checkpoints to one vocabulary."""
    return hashlib.sha256(read_bytes(path)).hexdigest()
