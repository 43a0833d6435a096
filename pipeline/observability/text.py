"""Text drawn into images: Latin, Greek, Cyrillic, Chinese, Japanese and Korean.

The fonts come with two Python packages, so that a text looks alike on every machine. No single
font has all six scripts, and Pillow does not look for a missing glyph in a second font. A line is
therefore cut into runs of characters that share a font, and each run is drawn with its own.
"""

import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import NamedTuple

import fontpkg_noto_sans
from noto_cjk_sans_otc import FONT_PATH
from PIL import ImageDraw, ImageFont

ELLIPSIS = "\u2026"
REPLACEMENT = "?"  # drawn for a character that neither font has
NO_CHARACTER = "\U0010ffff"  # what a font draws for it is its sign for a missing glyph

NOTO_SANS = fontpkg_noto_sans.ROOT / "files" / "NotoSans[wdth,wght].ttf"

# Code points drawn with the CJK font, first and last.
CJK_RANGES = (
    (0x1100, 0x11FF),  # Hangul jamo
    (0x2E80, 0xA4CF),  # radicals, kana, CJK punctuation and ideographs
    (0xA960, 0xA97F),  # Hangul jamo, extended
    (0xAC00, 0xD7FF),  # Hangul syllables
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0xFE30, 0xFE4F),  # vertical forms
    (0xFF00, 0xFFEF),  # full-width and half-width forms
    (0x20000, 0x3FFFF),  # ideographs beyond the first plane
)
# The faces of the CJK font. All have the same characters; the form of some ideographs differs.
JAPANESE, KOREAN, SIMPLIFIED_CHINESE = 0, 1, 2

# Punctuation that must not begin a line, and that must not end one (as in JIS X 4051).
_NOT_FIRST = "、。，．・：；？！）］｝〉》」』】〕ー々…"
_NOT_LAST = "（［｛〈《「『【〔"


class Style(NamedTuple):
    """How a text is drawn."""

    size: int  # of the fonts, in pixels
    face: int  # of the CJK font


def is_cjk(character: str) -> bool:
    """Whether a character is drawn with the CJK font."""
    code = ord(character)
    return any(first <= code <= last for first, last in CJK_RANGES)


def _is_hangul(character: str) -> bool:
    return "\u1100" <= character <= "\u11ff" or "\uac00" <= character <= "\ud7ff"


def _without_spaces(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words."""
    return is_cjk(character) and not _is_hangul(character)


def clean(text: str) -> str:
    """The text as it can be drawn: composed, on one line, unknown characters as question marks.

    Characters that are never visible, such as joiners and variation selectors, are left out.
    """
    drawn = []
    for character in unicodedata.normalize("NFC", text):
        category = unicodedata.category(character)
        if character.isspace() or category == "Cc":
            drawn.append(" ")
        elif category == "Cf" or "\ufe00" <= character <= "\ufe0f":
            continue
        else:
            drawn.append(character if has_glyph(character) else REPLACEMENT)
    return " ".join("".join(drawn).split())


@cache
def has_glyph(character: str) -> bool:
    """Whether the font that draws this character has a glyph for it."""
    font = _font(16, SIMPLIFIED_CHINESE if is_cjk(character) else None)
    return _glyph(font, character) != _glyph(font, NO_CHARACTER)


def _glyph(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@cache
def _font(size: int, face: int | None) -> ImageFont.FreeTypeFont:
    """The CJK font with this face, or Noto Sans if `face` is None; `size` in pixels."""
    if face is None:
        return ImageFont.truetype(str(NOTO_SANS), size)
    return ImageFont.truetype(str(FONT_PATH), size, index=face)


def style_for(text: str, size: int) -> Style:
    """The style in which the ideographs fit the language that the text seems to be in."""
    if any(map(_is_hangul, text)):
        return Style(size, KOREAN)
    if any("\u3040" <= c <= "\u30ff" for c in text):
        return Style(size, JAPANESE)
    return Style(size, SIMPLIFIED_CHINESE)


def _runs(line: str, style: Style) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
    for cjk, characters in groupby(line, key=is_cjk):
        yield "".join(characters), _font(style.size, style.face if cjk else None)


def line_width(line: str, style: Style) -> float:
    """Width in pixels of a clean line."""
    return sum(font.getlength(run) for run, font in _runs(line, style))


def draw_line(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    line: str,
    style: Style,
    colour: tuple[int, int, int],
    halo: int = 0,
) -> None:
    """Draw a clean line.

    Args:
        start: left end of the baseline on which all runs of the line stand.
        halo: width in pixels of a white edge around the letters.
    """
    left, baseline = start
    for run, font in _runs(line, style):
        draw.text(
            (left, baseline), run, colour, font, anchor="ls",
            stroke_width=halo, stroke_fill="white",
        )  # fmt: skip
        left += font.getlength(run)


def wrap(text: str, width: float, max_lines: int, style: Style) -> list[str]:
    """Cut a clean text into lines that fit.

    Lines break at spaces and, as Chinese and Japanese have no spaces, between their characters.
    They break inside a word only if the word alone is wider than a line. A text that needs more
    lines ends with an ellipsis.

    Args:
        text: as `clean` returns it.
        width: of a line, in pixels.
        max_lines: 1 or more.
    """
    lines: list[str] = []
    rest = text
    while rest:
        if len(lines) == max_lines:
            lines[-1] = _with_ellipsis(lines[-1], width, style)
            break
        length = _fitting_length(rest, width, style)
        lines.append(rest[:length].rstrip())
        rest = rest[length:].lstrip()
    return lines


def _fitting_length(text: str, width: float, style: Style) -> int:
    """How many characters of the text make up its first line."""
    length = 0
    for unit in _units(text):
        if line_width(text[: length + len(unit)].rstrip(), style) > width:
            break
        length += len(unit)
    if length:
        return length
    while length < len(text) and line_width(text[: length + 1], style) <= width:
        length += 1
    return max(length, 1)


def _units(text: str) -> Iterator[str]:
    """The parts of a text between which a line may break, with the spaces that follow them."""
    unit = ""
    for before, character in zip(" " + text, text, strict=False):
        breaks = before == " " or _without_spaces(before) or _without_spaces(character)
        stays = character == " " or character in _NOT_FIRST or before in _NOT_LAST
        if unit and breaks and not stays:
            yield unit
            unit = ""
        unit += character
    if unit:
        yield unit


def _with_ellipsis(line: str, width: float, style: Style) -> str:
    while line and line_width(line + ELLIPSIS, style) > width:
        line = line[:-1].rstrip()
    return line + ELLIPSIS
