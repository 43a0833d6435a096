"""Corpus BLEU-1 to BLEU-4."""

import math
from collections import Counter
from collections.abc import Sequence

MAX_N = 4
_SMALL = 1e-9  # avoids a division by 0 where there are no n-grams
_TINY = 1e-15  # keeps a precision of 0 positive, so that its root is defined


def bleu(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """BLEU of the whole corpus, with the brevity penalty against the closest reference length.

    Args:
        captions: B token lists.
        references: for each caption a list of token lists, at least one.
    Returns:
        BLEU-1 to BLEU-4, each in [0, 1].
    Source: Papineni et al., ACL 2002; equal to pycocoevalcap's Bleu(4), smoothing included.
    """
    matched, possible = [0] * MAX_N, [0] * MAX_N
    caption_length = reference_length = 0
    for caption, image_references in zip(captions, references, strict=True):
        length = len(caption)
        caption_length += length
        reference_length += _closest(length, [len(reference) for reference in image_references])
        for n in range(1, MAX_N + 1):
            possible[n - 1] += max(0, length - n + 1)
            matched[n - 1] += _matched(caption, image_references, n)
    ratio = (caption_length + _TINY) / (reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(1, MAX_N + 1):
        product *= (matched[n - 1] + _TINY) / (possible[n - 1] + _SMALL)
        scores.append(brevity * product ** (1 / n))
    return scores


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Count each n-gram: n consecutive tokens."""
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _closest(length: int, reference_lengths: Sequence[int]) -> int:
    """The reference length closest to `length`; of two equally close, the shorter."""
    return min(reference_lengths, key=lambda candidate: (abs(candidate - length), candidate))


def _matched(caption: Sequence[str], references: Sequence[Sequence[str]], n: int) -> int:
    """N-grams of the caption that match, each counted at most as often as in one reference."""
    wanted = ngrams(caption, n)
    most: dict[tuple[str, ...], int] = {}
    for reference in references:
        for ngram, count in ngrams(reference, n).items():
            if ngram in wanted and count > most.get(ngram, 0):
                most[ngram] = count
    return sum(min(count, most.get(ngram, 0)) for ngram, count in wanted.items())
