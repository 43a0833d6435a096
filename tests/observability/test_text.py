"""Text in images: every script is drawn with real glyphs, and lines fit."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from pipeline.observability.text import (
    ELLIPSIS,
    clean,
    draw_line,
    has_glyph,
    line_width,
    style_for,
    wrap,
)

SAMPLES = {
    "Latin": "Zażółć gęślą jaźń, người đàn ông, İstanbul'da ağaç, Straße, cœur — €3.50 “new”…",
    "Greek": "Ο άνδρας κάνει ιππασία στην παραλία ώς το βράδυ",
    "Cyrillic": "Їжак і ґава сидять поруч, человек ест мороженое, ђаци у школи",
    "Chinese": "一个男人在海滩上骑马，旁边有一只棕色的狗。後面是藍色的大海",
    "Japanese": "海辺で馬に乗っている男性と、フリスビーを追う犬「ポチ」がいます。ーヴ々",
    "Korean": "해변에서 말을 타고 있는 남자와 갈색 개 한 마리",
}
WIDTH, SIZE = 192, 13


@pytest.mark.parametrize("script", SAMPLES)
def test_no_box_is_drawn_in_place_of_a_letter(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, ImageFont.FreeTypeFont]] = []
    original = ImageDraw.ImageDraw.text

    def record(self: Any, xy: Any, text: str, fill: Any, font: Any, **options: Any) -> None:
        drawn.append((text, font))
        original(self, xy, text, fill, font, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    line = clean(SAMPLES[script])
    image = Image.new("RGB", (900, 30), "white")
    draw_line(ImageDraw.Draw(image), (0, 20), line, style_for(line, SIZE), (0, 0, 0))
    assert "".join(text for text, _ in drawn) == unicodedata.normalize("NFC", SAMPLES[script])
    for text, font in drawn:
        box = bytes(font.getmask("\U0010ffff"))
        assert [c for c in text if bytes(font.getmask(c)) == box] == []
    assert image.convert("L").getextrema()[0] < 100  # something was drawn


def test_what_the_fonts_lack_becomes_a_question_mark() -> None:
    assert clean("dog 🐶 כלב") == "dog ? ???"
    assert not has_glyph("🐶")


def test_invisible_characters_and_line_ends_are_not_drawn() -> None:
    assert clean("a\n  b\tc\u200d\ufe0f\u00ad d") == "a b c d"


def test_scripts_of_one_line_stand_beside_each_other() -> None:
    style = style_for("milk 牛乳", SIZE)
    whole = line_width("milk 牛乳", style)
    assert whole == line_width("milk ", style) + line_width("牛乳", style)


TEXTS = st.text(alphabet="ab ,.ąжώ一个，。「」海のー한국", max_size=80)


@given(TEXTS, st.integers(1, 5))
def test_every_line_fits_and_nothing_is_lost_without_an_ellipsis(text: str, max_lines: int) -> None:
    text = clean(text)
    style = style_for(text, SIZE)
    lines = wrap(text, WIDTH / 2, max_lines, style)
    assert len(lines) <= max_lines
    assert all(line_width(line, style) <= WIDTH / 2 for line in lines)
    without_spaces = "".join(lines).replace(" ", "")
    if without_spaces.endswith(ELLIPSIS):
        assert len(lines) == max_lines
        assert text.replace(" ", "").startswith(without_spaces[:-1])
    else:
        assert without_spaces == text.replace(" ", "")


def test_lines_break_where_the_script_allows_it() -> None:
    def lines(text: str, width: float) -> list[str]:
        return wrap(text, width, 9, style_for(text, SIZE))

    assert lines("a brown dog runs", 85) == ["a brown dog", "runs"]
    assert lines("一二三四五六", 3 * SIZE) == ["一二三", "四五六"]
    assert lines("一二三。四五六", 3 * SIZE) == ["一二", "三。四", "五六"]  # not first: 。
    assert lines("一二「三」", 3 * SIZE) == ["一二", "「三」"]  # not last: 「
    assert lines("갈색 개가 있다", 40) == ["갈색", "개가", "있다"]
