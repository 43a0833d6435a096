"""The rules of the Penn-Treebank tokeniser: which parts of a caption are tokens.

`ptb` explains how the rules are applied, and what the "shape" is that they are applied to.
"""

import re

# Stand-ins for non-ASCII characters in the shape: for a letter, a digit, a combining mark, a
# symbol, and a character that is deleted.
LETTER, DIGIT, MARK, SYMBOL, DELETED = "é", "\u0660", "\u0301", "©", "\0"
SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u3000"
_APOSTROPHES = "'\u0092\u2019"
QUOTES = "`\u0091\u0092\u0093\u0094\u2018\u2019\u201b\u201c\u201d\u2039\u203a\u00ab\u00bb"
HYPHENS = "\u058a\u2010\u2011"

# Abbreviations that keep their full stop: the first anywhere, the second only before a number.
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


_W = f"[A-Za-z{LETTER}{MARK}]"  # a word may start with these
_WD = f"[A-Za-z0-9{LETTER}{MARK}{DIGIT}\u00ad]"
_L = f"[A-Za-z{LETTER}]"
_LD = f"[A-Za-z0-9{LETTER}{DIGIT}]"
_D = f"[0-9{DIGIT}]"
APOSTROPHE = _AP = f"(?:[{_APOSTROPHES}]|&apos;)"
_AP_ANY = (
    f"(?:[{_APOSTROPHES}`\u0091\u2018\u201b]|&apos;)"  # in n't a back quote counts as an apostrophe
)
SPACE = _SP = f"[ \t{SPACES}]"
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

# (pattern, flags). Group 1 is the token; text matched after it counts only for the reach.
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
    (rf"({_THING}(?:[-_{HYPHENS}]{_THING})*)", re.I),
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
    (rf"(''|[{QUOTES}]{{1,2}})", 0),
    (r"(-{2,}|_+|@{2,}|#{2,}|<<|>>|\*{3,}|[!?]+|\.{3,}|\. \. \.)", 0),
)
IGNORED = frozenset(" \t" + SPACES + DELETED)
RULES = tuple(re.compile(pattern, flags) for pattern, flags in _RULES)

# Shortened words, which get a straight apostrophe.
CLITIC = re.compile(rf"n{_AP}t|{_AP}(?:[msdt]|re|ve|ll|em|till?|cause|n{_AP})", re.I)

# Most words are plain: letters before a space, a comma or a final full stop. They need no rules.
PLAIN = re.compile(r"[A-Za-z]+(?= |, |[.,]? *\Z)")
NOT_PLAIN = frozenset(("cannot", "gonna", "wanna", "gotta", "lemme", "gimme"))
ABBREVIATED = frozenset((_ABBREVIATIONS + " " + _BEFORE_NUMBER).split())
