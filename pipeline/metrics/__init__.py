"""Scores of captions, equal to those of the COCO caption evaluation code, without Java.

>>> from pipeline.metrics import caption_scores
>>> caption_scores({7: "a dog runs"}, {7: ["A dog runs.", "The dog is running"]})["BLEU-1"]
0.99...
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from pipeline.metrics.bleu import bleu
from pipeline.metrics.cider import cider
from pipeline.metrics.ptb import tokenize
from pipeline.metrics.rouge import rouge_l

__all__ = ["caption_scores", "tokenize"]

Id = TypeVar("Id", bound=Hashable)

_NUM_NAMED = 5  # ids shown in an error


def caption_scores(
    captions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]
) -> dict[str, float]:
    """Scores one caption an image against its references.

    Args:
        captions: image id -> the caption, raw text.
        references: image id -> the reference captions, raw text. CIDEr weighs words by how many
            of these images have them, so scores compare only over the same images.
    Returns:
        "BLEU-1" to "BLEU-4" and "ROUGE-L" as fractions, "CIDEr" as pycocoevalcap gives it (papers
        print all of them times 100).
    Raises:
        ValueError: the ids differ, there is none, or an image has no reference.
    Source: pycocoevalcap 1.2 (Chen et al., arXiv:1504.00325); `ptb` lists where tokens differ.
    """
    _check(captions, references)
    tokens = [tokenize(captions[image_id]) for image_id in captions]
    reference_tokens = [[tokenize(text) for text in references[image_id]] for image_id in captions]
    # A token may hold a no-break space ("1 1/2"): the original's ROUGE-L takes it for one word,
    # its BLEU and CIDEr for two.
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
            f"captions and references must have the same image ids: {len(without_references)} "
            f"only among the captions{_named(without_references)}, {len(without_caption)} only "
            f"among the references{_named(without_caption)}"
        )
    empty = [image_id for image_id in captions if not references[image_id]]
    if empty:
        raise ValueError(f"{len(empty)} images have no reference caption{_named(empty)}")
    bare = [image_id for image_id in captions if isinstance(references[image_id], str)]
    if bare:
        raise ValueError(f"references must be lists of captions, not one string{_named(bare)}")


def _named(ids: Iterable[Id]) -> str:
    """The first few ids, for an error: " (3, 8, ...)"."""
    shown = sorted(map(repr, ids))
    if not shown:
        return ""
    return f" ({', '.join(shown[:_NUM_NAMED])}{', ...' if len(shown) > _NUM_NAMED else ''})"
