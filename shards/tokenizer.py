"""Convert captions to token ids and back. A vocabulary is one tokenizer.json of `tokenizers`.

Both kinds of tokenizer normalise a caption to NFC and fold its case, unless the vocabulary was made
with `keep_case`. The word-level tokenizer splits at white space and makes each punctuation mark a
token; words rarer than `min_count` become UNK. The BPE tokenizer uses pieces of UTF-8 bytes, so it
has no unknown words in any language. Ids do not include begin and end marks: the caller adds BOS
and EOS where it needs them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from shards.join_words import join_words
from shards.storage import read_bytes

PAD, BOS, EOS, UNK = 0, 1, 2, 3

# These are plain vocabulary entries, not "special tokens" of the library, because the library would
# recognise a special token's text inside a caption. The pre-tokenizers split off "<", so text in a
# caption never matches these entries.
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")

# Sharp s and final sigma: the only letters of living languages that lower-casing does not fold.
ALWAYS_FOLDED = "\u00df\u03c2"


def train_word_tokenizer(
    captions: Sequence[str], min_count: int, keep_case: bool = False
) -> Tokenizer:
    """Build a word-level vocabulary, ordered by falling count, then alphabetically.

    Args:
        captions: raw captions.
        min_count: words that occur less often become UNK.
        keep_case: keep upper and lower case apart ("Dog" and "dog" are two words).
    Raises:
        ValueError: no word is frequent enough.
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=SPECIAL_TOKENS[UNK]))
    tokenizer.normalizer = _normalizer(captions, keep_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # For other programs that read the file. `decode` here uses `join_words`, which knows more. The
    # decoder stays as it is because its bytes are part of the tokenizer's digest.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(cleanup=True),  # joins words with spaces; " ." becomes "."
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
        raise ValueError(
            f"no word occurs {min_count} times or more in the captions; lower --min_count"
        )
    words = [*SPECIAL_TOKENS, *sorted(frequent, key=lambda word: (-counts[word], word))]
    tokenizer.model = models.WordLevel(
        {word: number for number, word in enumerate(words)}, unk_token=SPECIAL_TOKENS[UNK]
    )
    return tokenizer


def train_bpe_tokenizer(
    captions: Sequence[str], min_count: int, vocab_size: int, keep_case: bool = False
) -> Tokenizer:
    """Build a byte-level BPE vocabulary: the 256 bytes, and the most frequent joined pieces.

    Args:
        captions: raw captions.
        min_count: pairs of pieces that occur less often are not joined.
        vocab_size: largest number of entries, the special entries included.
        keep_case: keep upper and lower case apart.
    Raises:
        ValueError: `vocab_size` is too small for the 256 bytes and the special entries.
    """
    num_least = len(SPECIAL_TOKENS) + 256
    if vocab_size < num_least:
        raise ValueError(f"--vocab_size must be {num_least} or more for BPE, not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = _normalizer(captions, keep_case)
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
    # The trainer would turn the special entries into "special tokens", so they are inserted here.
    vocab = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    vocab |= {token: number + len(vocab) for token, number in model["vocab"].items()}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer.model = models.BPE(vocab, merges)
    return tokenizer


def _normalizer(captions: Iterable[str], keep_case: bool) -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFC()]) if keep_case else case_folding(captions)


def case_folding(captions: Iterable[str]) -> normalizers.Normalizer:
    """NFC and Unicode's full case folding, for the characters that occur in these captions.

    The library offers lower-casing only, which differs from full folding in 297 characters. Each
    extra rule costs time in every caption, so rules are added only for characters that occur.
    Source: the Unicode Standard, section 5.18, "Caseless Matching".
    """
    letters = set(ALWAYS_FOLDED).union(*map(str.lower, captions))
    odd = sorted(letter for letter in letters if letter.casefold() != letter)
    return normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            *(normalizers.Replace(letter, letter.casefold()) for letter in odd),
            normalizers.NFC(),  # folding may give a letter and a separate accent
        ]
    )


def encode(tokenizer: Tokenizer, caption: str) -> list[int]:
    """Token ids of a caption, without begin and end marks."""
    return list(tokenizer.encode(caption, add_special_tokens=False).ids)


def encode_all(tokenizer: Tokenizer, captions: Sequence[str]) -> list[list[int]]:
    """Token ids of several captions: the same as `encode` for each, but faster."""
    encoded = tokenizer.encode_batch_fast(captions, add_special_tokens=False)
    return [list(encoding.ids) for encoding in encoded]


def unknown_words(tokenizer: Tokenizer, caption: str) -> list[str]:
    """The words of a caption that are not in the vocabulary, as the caption spells them."""
    encoding = tokenizer.encode(caption, add_special_tokens=False)
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    return [caption[start:stop] for token, (start, stop) in spans if token == UNK]


def readable(tokenizer: Tokenizer, token: int) -> str:
    """A token as people read it.

    A BPE piece is shown as the letters that it stands for, or, if its bytes are only a part of a
    letter, as these bytes: `\\xe2\\x80`.
    """
    text = str(tokenizer.id_to_token(token))
    if token <= UNK or not isinstance(tokenizer.model, models.BPE):
        return text
    letters = str(decoders.ByteLevel().decode([text]))
    if "\ufffd" in letters:  # the sign for bytes that are not UTF-8
        return "".join(f"\\x{_piece_bytes()[sign]:02x}" for sign in text)
    return letters.replace(" ", "\u2423")  # an open box


@cache
def _piece_bytes() -> dict[str, int]:
    """The byte that each sign of a BPE piece stands for.

    Bytes that are printable in Latin-1 stand for themselves. The others have the signs from U+0100
    on, in their order.
    """
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = {sign: ord(sign) for sign in signs if ord(sign) < 256}
    others = sorted(set(range(256)) - set(printable.values()))
    return printable | dict(zip(signs[len(printable) :], others, strict=True))


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The caption that token ids stand for.

    A word-level tokenizer does not record spaces: `join_words` puts them where spelling has them.
    A BPE tokenizer gives its text back exactly.

    Args:
        ids: token ids; decoding stops at the first EOS and skips PAD and BOS.
    """
    words = []
    for token in ids:
        if token == EOS:
            break
        if token not in (PAD, BOS):
            words.append(token)
    if isinstance(tokenizer.model, models.WordLevel):
        return join_words([word for word in map(tokenizer.id_to_token, words) if word is not None])
    return str(tokenizer.decode(words, skip_special_tokens=False))


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json.

    Raises:
        ValueError: there is no such file, it is not a tokenizer, or its special entries do not
            have the ids 0 to 3.
    """
    try:
        tokenizer = Tokenizer.from_str(read_bytes(path).decode())
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"{path}: no such tokenizer; make one with `python -m shards tokenizer`. If a data set "
            "lost its tokenizer.json, run its build again"
        ) from None
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: not a file of the tokenizers library ({error})") from error
    for number, token in enumerate(SPECIAL_TOKENS):
        if tokenizer.token_to_id(token) != number:
            raise ValueError(
                f"{path}: {token} must have id {number}; "
                "make the file with `python -m shards tokenizer`"
            )
    return tokenizer


def tokenizer_sha256(path: Path) -> str:
    """sha256 of a tokenizer.json. Shards and checkpoints use it to name their vocabulary."""
    return hashlib.sha256(read_bytes(path)).hexdigest()
