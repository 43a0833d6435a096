"""ROUGE-L: the longest common subsequence of a caption and its references."""

from collections.abc import Sequence

BETA = 1.2  # weight of recall relative to precision


def rouge_l(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> float:
    """ROUGE-L, averaged over the images.

    Args:
        captions: B token lists.
        references: for each caption a list of token lists, at least one.
    Returns:
        The mean score, in [0, 1].
    Source: Lin, ROUGE, 2004. As in pycocoevalcap's Rouge, to which it is equal, the best precision
        and the best recall may come from different references.
    """
    scores = [_score(c, refs) for c, refs in zip(captions, references, strict=True)]
    return sum(scores) / len(scores)


def _score(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    # The original splits "" into one empty word, so an empty caption and reference score 1.
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

    One integer holds a row of the usual dynamic-programming table, with one bit for each word of
    `a`. A cleared bit is a position where the length grows.

    Source: Hyyro, Bit-parallel LCS-length computation revisited, 2004.
    """
    positions: dict[str, int] = {}
    for position, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << position
    everything = (1 << len(a)) - 1
    row = everything
    for word in b:
        hits = row & positions.get(word, 0)
        row = (row + hits | row - hits) & everything
    return len(a) - row.bit_count()
