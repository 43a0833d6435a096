r"""Penn-Treebank tokens of a caption, as the COCO caption evaluation counts them, without Java.

Matched: pycocoevalcap 1.2's PTBTokenizer, that is Stanford CoreNLP 3.4.1 with `-preserveLines
-lowerCase` reading UTF-8, then the evaluation's own list of punctuation taken out. The rules
below were worked out from what that program answers, not from its source.

How it works: at each place of the caption every rule is tried, and the one that reaches furthest
wins, the earlier rule on a tie. What a rule looks at beyond its own token counts as reach: in
"don't" the rule "a word before n't" (5 characters) beats the plain word "don" (3). The rules are
written for ASCII; a caption is first turned into a "shape" of the same length, where one stand-in
represents each kind of non-ASCII character, and the tokens are cut out of the original.

Known to differ from the Java program:

- It reads a whole file, so a caption's last token may depend on the next caption: a single letter
  and a full stop ("the letter A.") stay one token unless the next line starts with a word such as
  "The". Here each caption stands alone. A closing tag or phone number over two lines likewise.
- `\r`, `\v`, `\f`, U+2028 and U+2029 in a caption end a line there and shift every later caption
  to the wrong image. Here they are spaces.
- Characters that Unicode gained after 2012, and marks and letters of a few scripts: what is a
  letter here may be deleted there, or the other way round (760 of the 63,481 first characters).
- Pile-ups such as "Jan.-M&M's", "more'n-a-b" and "mont.a" split elsewhere (about 1 string in 700
  made of random fragments; none of 60,014 real captions).
"""

import re
import unicodedata
from functools import lru_cache

_QUOTE_MARKS = ("''", "'", "``", "`")
_BRACKETS = ("-LRB-", "-RRB-", "-LCB-", "-RCB-")
PUNCTUATION = frozenset((*_QUOTE_MARKS, *_BRACKETS, *".?!,:-;", "--", "..."))
"""Taken out after tokenisation. Lower-casing comes first, so "-lrb-" and the like stay in, a quirk
of the original that the scores depend on."""

# Stand-ins of the shape: a letter, a digit, a combining mark, a symbol, nothing at all.
_LETTER, _DIGIT, _MARK, _SYMBOL, _DELETED = "é", "\u0660", "\u0301", "©", "\0"
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u3000"
_LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))
_APOSTROPHES = "'\u0092\u2019"
_QUOTES = "`\u0091\u0092\u0093\u0094\u2018\u2019\u201b\u201c\u201d\u2039\u203a\u00ab\u00bb"
_HYPHENS = "\u058a\u2010\u2011"

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
    "".join(key for key in _NORMALISED if len(key) == 1) + _SPACES + _QUOTES + _HYPHENS + "\u2044"
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
    """The stand-in for one character; itself where a rule names it."""
    if char.isascii() or char in _KEPT_BY_SHAPE:
        return _DELETED if (char < " " and char != "\t") or char == "\x7f" else char
    if ord(char) > 0xFFFF:
        return _DELETED  # Java saw two surrogates here, and knew neither
    category, code = unicodedata.category(char), ord(char)
    if category[0] == "L":
        return _LETTER
    if category == "Nd":
        return _DIGIT
    if category in ("Mn", "Mc", "Sk") and 0x02C2 <= code < 0x0EE0:
        return _MARK
    return _SYMBOL if code in _SYMBOLS else _DELETED


def _shape(caption: str) -> str:
    """A string of the caption's length in which each character stands for its kind."""
    return "".join(map(_shape_of, caption))


# Abbreviations that keep their full stop: anywhere, and only before a number.
_ABBREVIATIONS = (
    "mr mrs ms dr st ave blvd rd mt ft vs etc jr sr inc co corp ltd prof gen col sgt capt lt rev "
    "hon gov sen rep pres dept univ assn bros jan feb mar apr jun jul aug sep sept oct nov dec mon "
    "tue tues wed thu thurs fri ala ariz calif colo conn fla ga ind kan ky md mich minn mo mont "
    "neb nev okla penn tenn vt va wis wyo al cf est tel ext bldg sq ct ph esq maj cmdr adm pvt cpl "
    "pfc brig supt det messrs mme mlle reps govs atty asst attys insp intl natl wm jos ste cos "
    "invt mfg sens ph.d"
)
_BEFORE_NUMBER = "no nos pp fig figs art op ca"


def _any_of(words: str) -> str:
    return "|".join(sorted(words.split(), key=len, reverse=True))


_W = f"[A-Za-z{_LETTER}{_MARK}]"  # what a word may start with
_WD = f"[A-Za-z0-9{_LETTER}{_MARK}{_DIGIT}\u00ad]"
_L = f"[A-Za-z{_LETTER}]"
_LD = f"[A-Za-z0-9{_LETTER}{_DIGIT}]"
_D = f"[0-9{_DIGIT}]"
_AP = f"(?:[{_APOSTROPHES}]|&apos;)"
_AP_ANY = f"(?:[{_APOSTROPHES}`\u0091\u2018\u201b]|&apos;)"  # a back quote passes for one in n't
_SP = f"[ \t{_SPACES}]"
_WORD = rf"{_W}{_WD}*(?:[.!?]{_W}{_WD}*)*"
_NUM = rf"(?:{_D}*(?:[.:,\u00ad\u066b\u066c]{_D}+)+|{_D}+)"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])*"
_AUX = rf"(?:{_AP}(?:[msd]|re|ve|ll)(?!{_L})|\u2019(?:[msd]|re|ve|ll))"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_THING = rf"(?:[dol]{_AP}(?={_LD}{_LD}))?{_LD}+"
_STARTER = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|"
    "Many|More|Mr\\.|Ms\\.|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|"
    "There|These|They|This|We|When|While|What|Yet|You"
)
_URL_END = r"[^\s\"<>|.!?(){},\-\0]"
_TAIL = rf"(?:/[^\s\"<>|()\0]+{_URL_END})?"

# (pattern, flags); group 1 is the token, what follows it only reach. Order breaks ties.
_RULES = (
    (r"(</?[a-z][^\s<>\"=/\0]*(?:[ \t\xa0]+[^<>'\0]*)?/?>|<[!?][^<>]*>)", re.I),
    (rf"(https?://[^\s\"<>|()\0]+{_URL_END})", re.I),
    (rf"(www\.(?:[^\s\"<>|.!?(){{}},\0]+\.)+[a-z]{{2,4}}{_TAIL})", re.I),
    (rf"((?:[^\s\"`'<>|.!?(){{}},\-_$/\0]+\.)+(?:com|net|org|edu){_TAIL})", 0),
    (r"(<?[a-z0-9][^\s\"<>|(){}\0]*@(?:[^\s\"<>|().{}\0]+\.)*[^\s\"<>|().{}\0]+>?)", re.I),
    (r"(@[a-z_][a-z_0-9]*)", re.I),
    (rf"(#{_L}+)", 0),
    (rf"(can)not(?!{_WD})|(gon|wan)na(?!{_WD})|(got)ta(?!{_WD})|(lem|gim)me(?!{_WD})", re.I),
    (rf"({_AP}t)(?:is|was)", re.I),
    (rf"({_W}{_WD}*?)n{_AP_ANY}t", re.I),
    (rf"(n{_AP_ANY}t)", re.I),
    (rf"({_WORD}){_AUX}", re.I),
    (rf"({_AUX})", re.I),
    (rf"({_AP}n{_AP}|{_AP}n(?!{_L})|\u2019n|{_AP}(?:em|till?|cause)|ol{_AP}(?!{_L}))", re.I),
    (rf"(cap{_AP}n|c{_AP}mon|nat{_AP}l|nor{_AP}easter|s{_AP}mores|ma{_AP}am|n?e{_AP}er)", re.I),
    (rf"([dlj]{_AP}|y{_AP}(?={_L}))", re.I),
    (rf"({_AP}{_D}{_D}(?:s|(?={_SP}|\Z)))", 0),
    (rf"({_WORD})", 0),
    (rf"([A-HJ-XZ]{_AP}[A-Za-z]{{2,}}|[dlno]{_AP}{_L}{{2,}})", 0),
    (rf"({_L}+[aeiouyAEIOUY]{_AP_ANY}[aeiouA-Z]{_L}*)", 0),
    (rf"({_THING}(?:[-_{_HYPHENS}]{_THING})*)", re.I),
    (r"([A-Z]+(?:(?:&|&amp;)[A-Z]+)+)", 0),
    (rf"({_SLASHED}(?:\\?/{_SLASHED}){{1,2}})", 0),
    (r"([A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\xad]+))+)", 0),
    (rf"(?<![A-Za-z0-9])([A-Za-z])\.{_SP}+(?:{_STARTER})(?={_SP}|\Z)", 0),
    (rf"({_ACRONYM}\.)", 0),
    (rf"((?:{_any_of(_ABBREVIATIONS.replace('.', chr(92) + '.'))})\.)", re.I),
    (rf"((?:{_any_of(_BEFORE_NUMBER)})\.)(?={_SP}*{_D})", re.I),
    (rf"((?:{_LD}+-)*{_LD}+\.)[,;:]", 0),
    (rf"([-+]?{_NUM})", 0),
    (rf"({_D}{{1,2}}[-/]{_D}{{1,2}}[-/]{_D}{{2,4}})", 0),
    (rf"((?:{_D}{{1,4}}[- \xa0])?{_D}{{1,4}}(?:\\?/|\u2044){_D}{{1,4}})", 0),
    (
        r"((?:\([0-9]{2,3}\)[ \xa0]?|\+{0,2}(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
        r"[0-9]{3,4}[- \xa0]?[0-9]{3,5})",
        0,
    ),
    (r"([A-Z]*\$)", 0),
    (r"(c\+\+|[cf]#)", re.I),
    (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z0-9])", 0),
    (r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>']_[-^x=~<>']\))", 0),
    (r"(&(?:amp|lt|gt|quot|apos|nbsp|mdash|MD|#[0-9]+);)", 0),
    (rf"(''|[{_QUOTES}]{{1,2}})", 0),
    (r"(-{2,}|_+|@{2,}|#{2,}|<<|>>|\*{3,}|[!?]+|\.{3,}|\. \. \.)", 0),
)
_IGNORED = frozenset(" \t" + _SPACES + _DELETED)
_COMPILED = tuple(re.compile(pattern, flags) for pattern, flags in _RULES)

# Shortened words whose apostrophe is written straight.
_CLITIC = re.compile(rf"n{_AP}t|{_AP}(?:[msdt]|re|ve|ll|em|till?|cause|n{_AP})", re.I)

# Most words are plain and need no contest: letters up to a space, a comma or a final full stop.
_PLAIN = re.compile(r"[A-Za-z]+(?= |, |[.,]? *\Z)")
_NOT_PLAIN = frozenset(("cannot", "gonna", "wanna", "gotta", "lemme", "gimme"))
_ABBREVIATED = frozenset((_ABBREVIATIONS + " " + _BEFORE_NUMBER).split())


def _next_token(shape: str, start: int) -> int:
    """Where the token that begins at `start` ends: the furthest-reaching rule's group 1."""
    plain = _PLAIN.match(shape, start)
    if plain:
        word, end = plain.group().lower(), plain.end()
        stopped = shape.startswith(".", end) and (len(word) == 1 or word in _ABBREVIATED)
        if word not in _NOT_PLAIN and not stopped:
            return end
    reach, token_end = start, start + 1
    for rule in _COMPILED:
        match = rule.match(shape, start)
        if match and match.end() > reach:
            reach, token_end = match.end(), match.end(match.lastindex or 0)
    return token_end


def _written(token: str) -> str:
    """A token as the original writes it: its own marks for quotes, brackets, money and dashes."""
    if token.isalpha():
        return token.lower()
    if token in _NORMALISED:
        return _NORMALISED[token]
    if token.startswith("..."):
        return "..."
    if token[0] == "<" and (token[1:2].isalnum() or token[1:2] in ("/", "!", "?")):
        return re.sub(_SP, "\u00a0", token).lower()  # a tag, its brackets as they are
    if all(char in _QUOTES for char in token):
        return "".join(_NORMALISED.get(char, char) for char in token)
    if not token[0].isalnum() and ("(" in token or ")" in token):
        token = token.replace("(", "-lrb-").replace(")", "-rrb-")
    if _CLITIC.fullmatch(token):
        token = "'".join(re.split(_AP, token))
    token = token.replace("&amp;", "&").replace("&apos;", "'").replace("\u00ad", "")
    return token.replace(" ", "\u00a0").lower()


def _all_tokens(caption: str) -> list[str]:
    """Tokens in order, punctuation included."""
    caption = caption.translate(_LINE_BREAKS)
    shape = _shape(caption) if not caption.isascii() or not caption.isprintable() else caption
    tokens, start = [], 0
    while start < len(shape):
        if shape[start] in _IGNORED:
            start += 1
            continue
        end = _next_token(shape, start)
        tokens.append(_written(caption[start:end]))
        start = end
    return tokens


def tokenize(caption: str) -> list[str]:
    """The caption's tokens in lower case, punctuation taken out.

    Args:
        caption: raw text; a line break in it is a space.
    Returns:
        the tokens, none for a caption without words. A few hold a no-break space, as the
        original's do: "1 1/2" and phone numbers are one token.
    Source: pycocoevalcap 1.2's PTBTokenizer; this module's docstring lists the differences.
    """
    return [t for t in _all_tokens(caption) if t and t not in PUNCTUATION]
