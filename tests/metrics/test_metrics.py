"""pipeline.metrics equals the COCO caption evaluation code: tokens, BLEU, ROUGE-L and CIDEr."""

import json
import os
import random
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.metrics import caption_scores, tokenize
from pipeline.metrics.ptb import PUNCTUATION

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
COCO = DATA / "coco-captions" / "captions_val2017.json"
FLICKR8K = [DATA / "flickr8k" / "annotations" / f"captions_{s}.json" for s in ("train", "val")]

# What the Java tokenizer answers, punctuation taken out, tokens joined by spaces.
PINNED = [
    (
        "Don't they say it can't, won't and shouldn't've?",
        "do n't they say it ca n't wo n't and should n't 've",
    ),
    (
        "You cannot go; I'm gonna, they've gotta, lemme see, gimme that.",
        "you can not go i 'm gon na they 've got ta lem me see gim me that",
    ),
    (
        "'Tis the dog's toy, the dogs' toys, James's in the '90s and the 1990's",
        "'t is the dog 's toy the dogs toys james 's in the '90s and the 1990 's",
    ),
    (
        "a black-and-white t-shirt -- a semi- truck - parked",
        "a black-and-white t-shirt a semi truck parked",
    ),
    ("and/or 1/2 a pizza, w/o 24/7 he/she / they", "and/or 1/2 a pizza w/o 24/7 he/she / they"),
    (
        "Mr. Smith of St. Louis, U.S.A., at 5 p.m. vs. Mrs. Jones, etc.",
        "mr. smith of st. louis u.s.a. at 5 p.m. vs. mrs. jones etc.",
    ),
    (
        "at 10:30am on 12/25/2010, 1,000.50 of 3.5 and -5 or 50%",
        "at 10:30 am on 12/25/2010 1,000.50 of 3.5 and -5 or 50 %",
    ),
    ("1 1/2 pizzas, call 555-1234 now", "1\xa01/2 pizzas call 555-1234 now"),
    (
        "$5.00, US$5, \xa35, \u20ac5, 50\xa2 and \xbd of 20\xb0C",
        "$ 5.00 us$ 5 # 5 $ 5 50 cents and 1/2 of 20 \xb0 c",
    ),
    ("wait... what . . . and\u2026then", "wait what and then"),
    (
        "\"quoted\" ``quoted'' \u201cquoted\u201d \u2018quoted\u2019 don\u2019t it\u2019s",
        "quoted quoted quoted quoted do n't it 's",
    ),
    (
        "(in brackets) [square] {curly}",
        "-lrb- in brackets -rrb- -lsb- square -rsb- -lcb- curly -rcb-",
    ),
    ("AT&T and black & white &amp; salt&pepper", "at&t and black & white & salt & pepper"),
    (
        "El Niño's café-bar, naïve façade, 中文 日本語 русский",
        "el niño 's café-bar naïve façade 中文 日本語 русский",
    ),
    (
        "smile \U0001f600\U0001f44d\U0001f3fd emoji \u2764\ufe0f a\U0001f600b \u2122",
        "smile emoji \u2764 a b \u2122",
    ),
    (
        "http://www.example.com/a?b=c or example.com, foo@bar.com #tag @handle",
        "http://www.example.com/a?b=c or example.com foo@bar.com #tag @handle",
    ),
    (" :) :-( ;D hi:) ^_^ ", ":-rrb- :--lrb- ;d hi :-rrb- ^_^"),
    ("   many    spaces\tand a tab  ", "many spaces and a tab"),
    ("*star* a*b under_score __ a+b=c C++", "* star * a * b under_score __ a + b = c c++"),
    ("end.Next hello!world a,b x:y Wow!! What?!", "end.next hello!world a b x y wow !! what ?!"),
    (
        "o'clock O'Brien ma'am rock 'n' roll Hawai'i y'all",
        "o'clock o'brien ma'am rock 'n' roll hawai'i y' all",
    ),
    ("<b>bold</b> 2 < 3", "<b> bold </b> 2 < 3"),
    ("the sign says X. The man reads it", "the sign says x the man reads it"),
    ("6'2\" tall, 5' x 10'", "6 2 tall 5 x 10"),
    (".", ""),
    ("", ""),
    ("\n", ""),
]

References = dict[int, list[str]]


def read_captions(path: Path) -> References:
    """image id -> its captions, from a file in COCO's layout; skips the test where it is absent."""
    if not path.exists():
        pytest.skip(f"no data at {path}")
    captions: References = {}
    for annotation in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return captions


def java_tokens(captions: list[str], folder: Path) -> list[list[str]]:
    """The tokens of pycocoevalcap's own jar, each caption read without its neighbours.

    Its class is left alone: it writes into its package's folder. A line "x" between two captions
    keeps the second one's first word from deciding how the first one ends.
    """
    if shutil.which("java") is None:
        pytest.skip("java is absent")
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pycocoevalcap is absent")
    package = Path(next(iter(spec.submodule_search_locations)))
    jar = package / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    if not jar.exists():
        pytest.skip("pycocoevalcap has no tokenizer jar")
    source = folder / "captions.txt"
    lines = [caption.replace("\n", " ") for caption in captions]
    source.write_text("\nx\n".join([*lines, ""]), encoding="utf-8", newline="\n")
    main = "edu.stanford.nlp.process.PTBTokenizer"
    options = ["-Dfile.encoding=UTF-8", "-Dsun.stdout.encoding=UTF-8", "-cp", str(jar), main]
    output = subprocess.run(
        ["java", *options, "-preserveLines", "-lowerCase", str(source)],
        capture_output=True,
        check=True,
        timeout=120,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    ).stdout.decode()
    answered = output.split("\n")[: 2 * len(captions)]
    assert answered[1::2] == ["x"] * len(captions), "a caption broke the lines"
    return [
        [token for token in line.rstrip().split(" ") if token and token not in PUNCTUATION]
        for line in answered[::2]
    ]


def differing(captions: list[str], folder: Path) -> list[tuple[str, list[str], list[str]]]:
    """(caption, our tokens, Java's) where the two differ."""
    theirs = java_tokens(captions, folder)
    pairs = ((caption, tokenize(caption)) for caption in captions)
    return [(*pair, other) for pair, other in zip(pairs, theirs, strict=True) if pair[1] != other]


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


@pytest.mark.parametrize(("caption", "tokens"), PINNED)
def test_tokens_are_those_of_the_java_tokenizer(caption: str, tokens: str) -> None:
    assert tokenize(caption) == [token for token in tokens.split(" ") if token]


def test_pinned_tokens_are_what_java_answers(tmp_path: Path) -> None:
    assert differing([caption for caption, _ in PINNED], tmp_path) == []


def test_line_breaks_inside_a_caption_are_spaces() -> None:
    for line_break in ("\n", "\r\n", "\u2028"):
        assert tokenize(f"a dog{line_break}runs.\n") == ["a", "dog", "runs"]


def test_coco_tokens_equal_java(tmp_path: Path) -> None:
    captions = [text for texts in read_captions(COCO).values() for text in texts]
    # Every tenth caption, and each that holds more than plain words and a final stop.
    unusual = [c for c in captions if not c.rstrip(". \n").replace(" ", "").isalpha()]
    assert differing(captions[::10] + unusual, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", [COCO, *FLICKR8K], ids=lambda path: f"{path.parts[-2:]}")
def test_all_tokens_equal_java(path: Path, tmp_path: Path) -> None:
    captions = [text for texts in read_captions(path).values() for text in texts]
    assert differing(captions, tmp_path) == []


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
    with pytest.raises(ValueError, match=r"1 images have no reference caption \('x'\)"):
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
