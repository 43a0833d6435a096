"""The tokens of captions equal those of the COCO caption evaluation code."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.captions import COCO, FLICKR8K, read_captions

from pipeline.metrics.ptb import PUNCTUATION, tokenize

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
