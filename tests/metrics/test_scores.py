"""The scores of captions equal those of the COCO caption evaluation code."""

import random

import pytest
from support.captions import COCO, References, read_captions

from pipeline.metrics.ptb import tokenize
from pipeline.metrics.scores import caption_scores


def coco_scores(captions: dict[int, str], references: References) -> dict[str, float]:
    """pycocoevalcap's scores over our tokens."""
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is absent")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    ours = {key: [" ".join(tokenize(text))] for key, text in captions.items()}
    theirs = {key: [" ".join(tokenize(t)) for t in texts] for key, texts in references.items()}
    bleu, _ = Bleu(4).compute_score(theirs, ours, verbose=0)
    scores = {f"BLEU-{n}": score for n, score in enumerate(bleu, start=1)}
    scores["ROUGE-L"] = Rouge().compute_score(theirs, ours)[0]
    scores["CIDEr"] = Cider().compute_score(theirs, ours)[0]
    return scores


def test_a_score_by_hand() -> None:
    """3 of the 4 words match, 2 of the 3 pairs, 1 of the 2 triples; lengths are equal."""
    scores = caption_scores({1: "a dog runs fast"}, {1: ["A dog runs home."]})
    assert scores["BLEU-1"] == pytest.approx(3 / 4)
    assert scores["BLEU-2"] == pytest.approx((3 / 4 * 2 / 3) ** (1 / 2))
    assert scores["BLEU-3"] == pytest.approx((3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert scores["BLEU-4"] < 1e-3
    assert scores["ROUGE-L"] == pytest.approx(3 / 4)
    assert scores["CIDEr"] == 0  # of one image, every word is in all images


def test_cider_by_hand() -> None:
    """ "a" is in both images and weighs 0; one caption is perfect, the other shares "a" alone."""
    scores = caption_scores({1: "a cat sits here", 2: "a"}, {1: ["a cat sits here"], 2: ["a dog"]})
    assert scores["CIDEr"] == pytest.approx(10 / 2)


def test_brevity_is_measured_against_the_closest_reference() -> None:
    near = caption_scores({1: "a dog"}, {1: ["a dog runs", "a dog runs over the green field"]})
    assert near["BLEU-1"] == pytest.approx(2.718281828459045 ** (1 - 3 / 2))


def test_perfect_captions_score_full() -> None:
    texts = {1: "A man rides a red bicycle.", 2: "Two dogs play in deep snow", 3: "an empty room"}
    scores = caption_scores(texts, {key: [text] for key, text in texts.items()})
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"):
        assert scores[name] == pytest.approx(1), name
    # The third caption has no 4-gram: its best is three quarters.
    assert scores["CIDEr"] == pytest.approx((10 + 10 + 7.5) / 3)


def test_order_of_ids_and_of_references_is_irrelevant() -> None:
    captions = {"b": "a dog runs", "a": "two men on a bench", "c": "the red bus"}
    references = {"a": ["men sit", "two men sit"], "b": ["a dog", "dogs run"], "c": ["a red bus"]}
    scores = caption_scores(captions, references)
    turned = caption_scores(
        dict(sorted(captions.items())), {key: refs[::-1] for key, refs in references.items()}
    )
    assert turned == pytest.approx(scores, abs=1e-12)


def test_unequal_ids_are_named() -> None:
    with pytest.raises(ValueError, match=r"1 only among the captions \(3\), 7 only .*, \.\.\.\)"):
        caption_scores({3: "a"}, {key: ["a"] for key in range(10, 17)})


def test_nothing_to_score_and_images_without_references_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        caption_scores({}, {})
    with pytest.raises(ValueError, match=r"1 image has no reference caption \('x'\)"):
        caption_scores({"x": "a", "y": "a"}, {"x": [], "y": ["a"]})
    with pytest.raises(ValueError, match="not one string"):
        caption_scores({1: "a"}, {1: "a"})


@pytest.mark.parametrize(
    ("captions", "references"),
    [
        pytest.param({1: ""}, {1: ["a dog", "cats"]}, id="empty caption"),
        pytest.param({1: ". !", 2: ""}, {1: ["", "a b"], 2: [""]}, id="empty reference"),
        pytest.param({1: "a dog runs"}, {1: ["a dog runs"]}, id="one image"),
        pytest.param({1: "a dog", 2: "x"}, {1: ["a dog"], 2: ["a x y z", "x"]}, id="short"),
        pytest.param({1: "a a a a a", 2: "b"}, {1: ["a a b"], 2: ["c", "b c"]}, id="repeats"),
        pytest.param({1: "a b c d", 2: "e f"}, {1: ["a b c d"], 2: ["e f"]}, id="identical"),
        pytest.param({1: "1 1/2 dogs", 2: "1/2"}, {1: ["1 1/2 dogs"], 2: ["1 1/2"]}, id="no-break"),
    ],
)
def test_edge_cases_equal_pycocoevalcap(captions: dict[int, str], references: References) -> None:
    assert caption_scores(captions, references) == pytest.approx(
        coco_scores(captions, references), abs=1e-9, rel=0
    )


def test_scores_of_real_captions_equal_pycocoevalcap() -> None:
    """One caption of each image against the others, and against those of the next image."""
    images = read_captions(COCO)
    chosen = random.Random(0).sample(sorted(images), 400)
    held_out = {key: images[key][0] for key in chosen}
    others = {key: images[key][1:] for key in chosen}
    shifted = {key: images[chosen[place - 1]][0] for place, key in enumerate(chosen)}
    for captions in (held_out, shifted):
        assert caption_scores(captions, others) == pytest.approx(
            coco_scores(captions, others), abs=1e-9, rel=0
        )
