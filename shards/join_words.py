"""Word-level tokens -> text, with the spaces that English spelling puts between them.

The word-level tokenizer splits a caption at white space and makes every punctuation mark a token,
so the tokens do not say where the spaces were. Spelling says it for nearly all of them: a mark
attaches to the word on its left, to the word on its right, to both, or to neither. `ATTACHES`
holds the usual side of each mark. `_side_of_mark` knows the marks whose side depends on their
neighbours, and `_opens_quotation` pairs straight quotation marks.
"""

from collections.abc import Sequence
from enum import Flag

AFTER_APOSTROPHE = frozenset(("s", "t", "m", "d", "ll", "re", "ve"))  # dog's, don't, I'm
BEFORE_APOSTROPHE = frozenset(("o", "d", "l", "y", "ma"))  # o'clock, hors d'oeuvre, ma'am
NEVER_BEFORE_APOSTROPHE = frozenset(("a", "an", "the", "letter"))  # an 's' on a shirt
SHORTENED = frozenset(("em", "til", "till", "cause"))  # 'em, 'til
DOMAIN_ENDINGS = frozenset(("com", "org", "net", "edu", "gov", "co", "uk"))
WORDS_OF_ONE_LETTER = frozenset(("a", "i"))


class Side(Flag):
    """The neighbours that a mark has no space to."""

    NONE = 0
    LEFT = 1
    RIGHT = 2
    BOTH = 3


ATTACHES = {
    **dict.fromkeys(".,;:!?%)]}\u2026\u201d\u2019\u00bb\u203a\u060c\u061b\u061f\u0964", Side.LEFT),
    **dict.fromkeys("([{#$\u00a1\u00bf\u201c\u201e\u2018\u00ab\u2039", Side.RIGHT),
    **dict.fromkeys("/_", Side.BOTH),
    # Chinese and Japanese marks: these languages put no spaces around them.
    **dict.fromkeys("\u3001\u3002\u30fb\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f", Side.BOTH),
    **dict.fromkeys("\u3008\u3009\u300a\u300b\u300c\u300d\u300e\u300f\u3010\u3011", Side.BOTH),
}
"""The usual side. A mark that is not listed has a space on both sides."""

QUOTES = frozenset("\"'")
APOSTROPHES = frozenset("'\u2019`")
HYPHENS = frozenset("-\u2010\u2011")
EN_DASH = "\u2013"


def join_words(words: Sequence[str]) -> str:
    """Write the tokens of a word-level tokenizer as text.

    Args:
        words: words and single punctuation marks, in order.
    Returns:
        the text; two neighbouring tokens have one space or none between them.
    """
    text = ""
    attached = True  # to the token before
    open_quotes: set[str] = set()
    for place, word in enumerate(words):
        side = Side.NONE if _is_word(word) else _side_of_mark(words, place)
        if word in open_quotes and _is_quote(words, place):
            open_quotes.remove(word)
            side = Side.LEFT
        elif _opens_quotation(words, place):
            open_quotes.add(word)
            side = Side.RIGHT
        text += word if attached or Side.LEFT in side else f" {word}"
        attached = Side.RIGHT in side
    return text


def _side_of_mark(words: Sequence[str], place: int) -> Side:
    """Where a punctuation mark attaches that is no opening or closing straight quotation mark."""
    mark = words[place]
    left, right, after = _at(words, place - 1), _at(words, place + 1), _at(words, place + 2)
    if mark in APOSTROPHES:
        return _side_of_apostrophe(words, place)
    if mark == '"':
        return Side.LEFT if left[-1:].isdigit() else Side.NONE  # 12"
    if mark in HYPHENS:
        if mark in (left, right):  # a dash typed as "--" has spaces around it
            return Side.RIGHT if left != mark else Side.BOTH if right == mark else Side.LEFT
        return Side.BOTH if _is_word(left) and _is_word(right) else Side.NONE
    if mark in (".", ":", EN_DASH) and left[-1:].isdigit() and right[:1].isdigit():
        return Side.BOTH  # 3.5, 10:30
    if mark == "," and left.isdigit() and len(left) <= 3 and _is_thousands(right):
        return Side.BOTH  # 1,000
    if mark == "." and (left.lower() == "www" or right.lower() in DOMAIN_ENDINGS):
        return Side.BOTH  # www.example.com
    if mark == "." and _is_letter(left) and _is_letter(right):  # U.S., but: plan B. A man
        return Side.BOTH if after == "." or not _is_letter_word(right) else Side.LEFT
    if mark == "&" and _is_letter(right) and not _is_letter_word(right):
        return Side.BOTH  # AT&T
    return ATTACHES.get(mark, Side.NONE)


def _side_of_apostrophe(words: Sequence[str], place: int) -> Side:
    mark, left, right = words[place], _at(words, place - 1), _at(words, place + 1)
    if _is_inside_word(words, place):
        return Side.BOTH  # dog's
    if _is_short(right):
        return Side.RIGHT  # 'til, '07
    if mark != "'":
        return ATTACHES.get(mark, Side.NONE)
    if not _is_word(right) or left.lower().endswith("s"):
        return Side.LEFT  # the dogs' ball
    return Side.BOTH  # Hallowe'en


def _opens_quotation(words: Sequence[str], place: int) -> bool:
    """Whether the token is a straight quotation mark that a later one closes."""
    right = _at(words, place + 1)
    can_open = _is_word(right) or right in QUOTES or ATTACHES.get(right) is Side.RIGHT
    return (
        can_open
        and _is_quote(words, place)
        and any(_is_partner(words, place, later) for later in range(place + 2, len(words)))
    )


def _is_partner(words: Sequence[str], place: int, later: int) -> bool:
    """Whether the mark at `later` can close a quotation that the one at `place` opens."""
    if words[later] != words[place] or not _is_quote(words, later):
        return False
    inches = _at(words, place - 1)[-1:].isdigit() and words[later - 1][-1:].isdigit()  # 8" by 10"
    mark = words[later]
    opens = mark in APOSTROPHES or _at(words, later + 2) == mark  # '07 or "66"
    return not inches and not (opens and _is_short(_at(words, later + 1)))


def _is_quote(words: Sequence[str], place: int) -> bool:
    """Whether the token is a straight quotation mark, or an apostrophe that may be one."""
    return words[place] in QUOTES and not _is_inside_word(words, place)


def _is_inside_word(words: Sequence[str], place: int) -> bool:
    """Whether the mark at `place` is an apostrophe between two parts of one word."""
    left, right = _at(words, place - 1).lower(), _at(words, place + 1).lower()
    if words[place] not in APOSTROPHES or not (_is_word(left) and _is_word(right)):
        return False
    if left in NEVER_BEFORE_APOSTROPHE:
        return False
    feet_and_inches = left[-1].isdigit() and right[0].isdigit()  # 6'2"
    return feet_and_inches or right in AFTER_APOSTROPHE or left in BEFORE_APOSTROPHE


def _is_short(token: str) -> bool:
    """Whether an apostrophe may stand for the missing start of this word: '07, '70s, 'til."""
    is_year = len(token) >= 2 and token[:2].isdigit() and token[2:] in ("", "s")
    return is_year or token.lower() in SHORTENED


def _at(words: Sequence[str], place: int) -> str:
    return words[place] if 0 <= place < len(words) else ""


def _is_word(token: str) -> bool:
    """Whether a token is a word, a number or `<unk>`. A mark is one character and no letter."""
    return len(token) > 1 or token.isalnum()


def _is_letter(token: str) -> bool:
    return len(token) == 1 and token.isalpha()


def _is_letter_word(token: str) -> bool:
    return token.lower() in WORDS_OF_ONE_LETTER


def _is_thousands(token: str) -> bool:
    return len(token) >= 3 and token[:3].isdigit() and not token[3:4].isdigit()
