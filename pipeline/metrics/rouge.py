"""ROUGE-L: the longest common subsequence with the references."""

from collections.abc import Sequence

BETA = 1.2  # weight of recall against precision


def rouge_l(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> float:
    """Mean over the images of ROUGE-L.

    Args:
        captions: B token lists.
        references: B lists of token lists, at least one an image.
    Returns:
        the mean score, in [0, 1].
    Source: Lin, ROUGE, 2004, with the best precision and the best recall taken over the
        references, each on its own; equal to pycocoevalcap's Rouge.
    """
    scores = [_score(c, refs) for c, refs in zip(captions, references, strict=True)]
    return sum(scores) / len(scores)


def _score(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    # The original splits "" into one empty word, so that nothing against nothing scores 1.
    words = caption or [""]
    precision = recall = 0.0
    for reference in references:
        reference_words = reference or [""]
        common = _common_length(words, reference_words)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(reference_words))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    One integer holds a whole row of the usual table, a bit a word of `a`: a cleared bit is a place
    where the length grows. Source: Hyyro, Bit-parallel LCS-length computation revisited, 2004.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    everything = (1 << len(a)) - 1
    row = everything
    for word in b:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & everything
    return len(a) - row.bit_count()
