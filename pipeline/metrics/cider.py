"""CIDEr-D: agreement in n-grams, where rare n-grams weigh more."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.metrics.bleu import ngrams

MAX_N = 4
SIGMA = 6.0  # tokens; width of the Gaussian penalty on a difference in length
_SCALE = 10.0

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class _Vector:
    """A caption as tf-idf vectors, one for each n from 1 to MAX_N."""

    weights: tuple[dict[Ngram, float], ...]  # for each n: n-gram -> tf-idf
    norms: tuple[float, ...]  # for each n: Euclidean norm of the weights
    length: int  # number of 2-grams


def cider(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> float:
    """CIDEr-D, averaged over the images.

    Document frequencies are counted over the given references, so compare scores only over the
    same images. With one image all weights are 0, and the score is 0.

    Args:
        captions: B token lists.
        references: for each caption a list of token lists, at least one.
    Returns:
        The mean score, in [0, 10].
    Source: Vedantam et al., arXiv:1411.5726, CIDEr-D; equal to pycocoevalcap's Cider, which takes
        as length the number of 2-grams.
    """
    counted = [[_counts(reference) for reference in refs] for refs in references]
    num_images_with = Counter(
        ngram for refs in counted for ngram in set().union(*_all_ngrams(refs))
    )
    log_num_images = math.log(len(references))
    idf = {ngram: log_num_images - math.log(count) for ngram, count in num_images_with.items()}
    scores = []
    for caption, refs in zip(captions, counted, strict=True):
        vector = _vector(_counts(caption), idf, log_num_images)
        vectors = [_vector(reference, idf, log_num_images) for reference in refs]
        scores.append(sum(_similarity(vector, other) for other in vectors) / len(vectors))
    return _SCALE * sum(scores) / len(scores)


def _counts(tokens: Sequence[str]) -> list[Counter[Ngram]]:
    return [ngrams(tokens, n) for n in range(1, MAX_N + 1)]


def _all_ngrams(references: Sequence[list[Counter[Ngram]]]) -> Iterable[Iterable[Ngram]]:
    return (counts for reference in references for counts in reference)


def _vector(counts: Sequence[Counter[Ngram]], idf: dict[Ngram, float], unseen: float) -> _Vector:
    """Tf-idf weights. An n-gram of no reference gets the idf `unseen`, as if one image had it."""
    weights = tuple(
        {ngram: count * idf.get(ngram, unseen) for ngram, count in of_n.items()} for of_n in counts
    )
    norms = tuple(math.sqrt(sum(w * w for w in of_n.values())) for of_n in weights)
    return _Vector(weights, norms, counts[1].total())


def _similarity(caption: _Vector, reference: _Vector) -> float:
    """Mean over n of the clipped cosine similarity, times a Gaussian length penalty."""
    total = 0.0
    for own, other, own_norm, other_norm in zip(
        caption.weights, reference.weights, caption.norms, reference.norms, strict=True
    ):
        shared = own.keys() & other.keys()
        if shared and own_norm and other_norm:
            clipped = sum(min(own[ngram], other[ngram]) * other[ngram] for ngram in shared)
            total += clipped / (own_norm * other_norm)
    difference = caption.length - reference.length
    return total / MAX_N * math.exp(-(difference**2) / (2 * SIGMA**2))
