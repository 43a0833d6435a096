r"""Penn-Treebank tokens of a caption, as the COCO caption evaluation counts them, without Java.

The result equals that of pycocoevalcap 1.2's PTBTokenizer, which runs Stanford CoreNLP 3.4.1 with
`-preserveLines -lowerCase` on UTF-8 and then removes a list of punctuation. The rules were derived
from the output of that program, not from its source.

How it works: at each position of the caption all rules of `ptb_rules` are tried. The rule that
reaches furthest wins; of two that reach equally far, the earlier one. Text that a rule looks at
after its own token counts too: in "don't" the rule "a word before n't" (5 characters) beats the
plain word "don" (3). The rules are written for ASCII. So a caption is first turned into a "shape"
of the same length, in which one stand-in represents each kind of non-ASCII character. The tokens
are then cut out of the original caption.

Known differences from the Java program:

- The Java program reads a whole file, so the last token of a caption may depend on the next
  caption: a single letter and a full stop ("the letter A.") stay one token unless the next line
  starts with a word such as "The". The same holds for a tag or phone number that ends on the next
  line. Here each caption is tokenised alone.
- In the Java program `\r`, `\v`, `\f`, U+2028 and U+2029 end a line, so every later caption is
  assigned to the wrong image. Here they are spaces.
- Characters added to Unicode after 2012, and marks and letters of a few scripts: some are letters
  here and deleted there, or the reverse (760 of the first 63,481 characters).
- Rare combinations such as "Jan.-M&M's", "more'n-a-b" and "mont.a" are split differently (about 1
  in 700 strings made of random fragments; none of 60,014 real captions).
"""

import re
import unicodedata
from functools import lru_cache

from pipeline.metrics import ptb_rules as rules

_QUOTE_MARKS = ("''", "'", "``", "`")
_BRACKETS = ("-LRB-", "-RRB-", "-LCB-", "-RCB-")
PUNCTUATION = frozenset((*_QUOTE_MARKS, *_BRACKETS, *".?!,:-;", "--", "..."))
"""Tokens that are removed. The original lower-cases before it removes them, so "-lrb-" and the like
stay in, and the scores depend on that."""

_LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))

_NORMALISED = {
    **dict.fromkeys("\u0091\u2018\u201b\u2039", "`"),
    **dict.fromkeys("\u0092\u2019\u203a", "'"),
    **dict.fromkeys("\u0093\u201c\u00ab", "``"),
    **dict.fromkeys("\u0094\u201d\u00bb", "''"),
    **dict.fromkeys("\u0096\u0097\u2013\u2014\u2015", "--"),
    **dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$"),
    **{"\u00a2": "cents", "\u00a3": "#", "\u00ad": "-", "\u0085": "...", "\u2026": "..."},
    **{"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{'"': "''", "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'"},
    "&nbsp;": "",
    **dict.fromkeys(("&mdash;", "&MD;", "---", "----"), "--"),
    ". . .": "...",
}
_KEPT_BY_SHAPE = frozenset(
    "".join(key for key in _NORMALISED if len(key) == 1)
    + rules.SPACES
    + rules.QUOTES
    + rules.HYPHENS
    + "\u2044"
    "\u066b\u066c"
)


_SYMBOL_RANGES = (
    "a1 a5-a9 ac ae-b4 b6-b9 bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60c 614 61b "
    "61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2016-2017 201a 201e-2023 2030-2038 "
    "203b 203e-2042 2070 2074-207e 2080-208e 20a4 2100-2101 2103-2106 2108-2109 2114 2116-2118 "
    "211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f 2155-215e 2190-2bff "
    "3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6"
)
_SYMBOLS = frozenset(
    code
    for span in _SYMBOL_RANGES.split()
    for code in range(int(span.split("-")[0], 16), int(span.split("-")[-1], 16) + 1)
)


@lru_cache(maxsize=4096)
def _shape_of(char: str) -> str:
    """The stand-in of one character; the character itself if a rule names it."""
    if char.isascii() or char in _KEPT_BY_SHAPE:
        return rules.DELETED if (char < " " and char != "\t") or char == "\x7f" else char
    if ord(char) > 0xFFFF:
        return rules.DELETED  # Java sees two surrogates, and knows neither of them
    category, code = unicodedata.category(char), ord(char)
    if category[0] == "L":
        return rules.LETTER
    if category == "Nd":
        return rules.DIGIT
    if category in ("Mn", "Mc", "Sk") and 0x02C2 <= code < 0x0EE0:
        return rules.MARK
    return rules.SYMBOL if code in _SYMBOLS else rules.DELETED


def _shape(caption: str) -> str:
    """A string of the same length in which each character is the stand-in of its kind."""
    return "".join(map(_shape_of, caption))


def _next_token(shape: str, start: int) -> int:
    """The end of the token that begins at `start`: of group 1 of the rule that reaches furthest."""
    plain = rules.PLAIN.match(shape, start)
    if plain:
        word, end = plain.group().lower(), plain.end()
        stopped = shape.startswith(".", end) and (len(word) == 1 or word in rules.ABBREVIATED)
        if word not in rules.NOT_PLAIN and not stopped:
            return end
    reach, token_end = start, start + 1
    for rule in rules.RULES:
        match = rule.match(shape, start)
        if match and match.end() > reach:
            reach, token_end = match.end(), match.end(match.lastindex or 0)
    return token_end


def _written(token: str) -> str:
    """The token as the original writes it, with its own quotes, brackets, currencies and dashes."""
    if token.isalpha():
        return token.lower()
    if token in _NORMALISED:
        return _NORMALISED[token]
    if token.startswith("..."):
        return "..."
    if token[0] == "<" and (token[1:2].isalnum() or token[1:2] in ("/", "!", "?")):
        return re.sub(rules.SPACE, "\u00a0", token).lower()  # a tag keeps its brackets
    if all(char in rules.QUOTES for char in token):
        return "".join(_NORMALISED.get(char, char) for char in token)
    if not token[0].isalnum() and ("(" in token or ")" in token):
        token = token.replace("(", "-lrb-").replace(")", "-rrb-")
    if rules.CLITIC.fullmatch(token):
        token = "'".join(re.split(rules.APOSTROPHE, token))
    token = token.replace("&amp;", "&").replace("&apos;", "'").replace("\u00ad", "")
    return token.replace(" ", "\u00a0").lower()


def _all_tokens(caption: str) -> list[str]:
    """The tokens in order, punctuation included."""
    caption = caption.translate(_LINE_BREAKS)
    shape = _shape(caption) if not caption.isascii() or not caption.isprintable() else caption
    tokens, start = [], 0
    while start < len(shape):
        if shape[start] in rules.IGNORED:
            start += 1
            continue
        end = _next_token(shape, start)
        tokens.append(_written(caption[start:end]))
        start = end
    return tokens


def tokenize(caption: str) -> list[str]:
    """The tokens of a caption in lower case, without punctuation.

    Args:
        caption: raw text; a line break counts as a space.
    Returns:
        The tokens; an empty list for a caption without words. As in the original, "1 1/2" and phone
        numbers are one token, which contains a no-break space.
    Source: pycocoevalcap 1.2's PTBTokenizer; this module's docstring lists the differences.
    """
    return [t for t in _all_tokens(caption) if t and t not in PUNCTUATION]
