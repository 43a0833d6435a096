"""All metrics of a set of captions at once.

>>> from pipeline.metrics.scores import caption_scores
>>> caption_scores({7: "a dog runs"}, {7: ["A dog runs.", "The dog is running"]})["BLEU-1"]
0.99...
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from pipeline.metrics.bleu import bleu
from pipeline.metrics.cider import cider
from pipeline.metrics.ptb import tokenize
from pipeline.metrics.rouge import rouge_l

Id = TypeVar("Id", bound=Hashable)

_NUM_NAMED = 5  # ids shown in an error


def caption_scores(
    captions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]
) -> dict[str, float]:
    """Score one caption of each image against the image's reference captions.

    Args:
        captions: image id -> the caption, raw text.
        references: image id -> the reference captions, raw text. CIDEr weights an n-gram by the
            number of these images that have it, so compare scores only over the same images.
    Returns:
        "BLEU-1" to "BLEU-4" and "ROUGE-L" in [0, 1], "CIDEr" in [0, 10]. Papers print all of them
        times 100.
    Raises:
        ValueError: the ids differ, there are none, or an image has no reference caption.
    Source: pycocoevalcap 1.2 (Chen et al., arXiv:1504.00325); `ptb` lists where tokens differ.
    """
    _check(captions, references)
    tokens = [tokenize(captions[image_id]) for image_id in captions]
    reference_tokens = [[tokenize(text) for text in references[image_id]] for image_id in captions]
    # A token may contain a no-break space ("1 1/2"). The original's ROUGE-L counts such a token as
    # one word, its BLEU and CIDEr as two.
    words = [_words(caption) for caption in tokens]
    reference_words = [[_words(text) for text in texts] for texts in reference_tokens]
    scores = {f"BLEU-{n}": score for n, score in enumerate(bleu(words, reference_words), start=1)}
    scores["ROUGE-L"] = rouge_l(tokens, reference_tokens)
    scores["CIDEr"] = cider(words, reference_words)
    return scores


def _words(tokens: Sequence[str]) -> list[str]:
    return " ".join(tokens).split()


def _check(captions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> None:
    if not captions and not references:
        raise ValueError("nothing to score: there are no captions and no references")
    without_references = captions.keys() - references.keys()
    without_caption = references.keys() - captions.keys()
    if without_references or without_caption:
        raise ValueError(
            f"captions and references must have the same image ids: {len(without_references):,} "
            f"only among the captions{_named(without_references)}, {len(without_caption):,} only "
            f"among the references{_named(without_caption)}"
        )
    empty = [image_id for image_id in captions if not references[image_id]]
    if empty:
        images = "1 image has" if len(empty) == 1 else f"{len(empty):,} images have"
        raise ValueError(f"{images} no reference caption{_named(empty)}")
    bare = [image_id for image_id in captions if isinstance(references[image_id], str)]
    if bare:
        raise ValueError(f"references must be lists of captions, not one string{_named(bare)}")


def _named(ids: Iterable[Id]) -> str:
    """The first few ids in brackets, for an error: " (3, 8, ...)"."""
    shown = sorted(map(repr, ids))
    if not shown:
        return ""
    return f" ({', '.join(shown[:_NUM_NAMED])}{', ...' if len(shown) > _NUM_NAMED else ''})"
