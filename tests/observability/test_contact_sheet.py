"""The contact sheet: texts stay in their cells, long ones end with an ellipsis."""

import numpy as np
import pytest

from pipeline.observability.contact_sheet import (
    BLACK,
    GREY,
    IMAGE_SIDE,
    LINE_HEIGHT,
    MARGIN,
    TEXT_LINES,
    Captioned,
    cell_lines,
    draw_sheet,
)
from pipeline.observability.text import ELLIPSIS, line_width

LONG = "a brown dog runs after a ball on the beach " * 9
CHINESE = "一个男人在海滩上骑马，旁边有一只棕色的狗在追逐飞盘。" * 9
IMAGE = np.full((24, 24, 3), 90, dtype=np.uint8)


@pytest.mark.parametrize("text", [LONG, CHINESE, "W" * 500])
def test_a_long_text_ends_with_an_ellipsis_inside_its_cell(text: str) -> None:
    lines = cell_lines(text, text)
    assert [colour for _, _, colour in lines] == [BLACK] * 3 + [GREY] * 2
    assert [line.endswith(ELLIPSIS) for line, _, _ in lines] == [False, False, True, False, True]
    assert all(line_width(line, style) <= IMAGE_SIDE for line, style, _ in lines)


def test_a_caption_without_reference_has_the_whole_cell() -> None:
    assert len(cell_lines(LONG, "")) == TEXT_LINES
    assert [line for line, _, _ in cell_lines("a dog", "a cat")] == ["a dog", "a cat"]
    assert cell_lines("", "") == []


def test_nothing_is_drawn_between_the_cells() -> None:
    sheet = np.asarray(draw_sheet([Captioned(IMAGE, "W" * 500, LONG)] * 5))
    cell_w = IMAGE_SIDE + MARGIN
    cell_h = IMAGE_SIDE + TEXT_LINES * LINE_HEIGHT + MARGIN
    assert sheet.shape == (2 * cell_h + MARGIN, 4 * cell_w + MARGIN, 3)
    for column in range(5):
        assert (sheet[:, column * cell_w : column * cell_w + MARGIN] == 255).all()
    for row in range(3):
        assert (sheet[row * cell_h + MARGIN // 2 : row * cell_h + MARGIN] == 255).all()
    text = sheet[MARGIN + IMAGE_SIDE : cell_h + MARGIN // 2, MARGIN:cell_w]
    assert (text < 100).any()


def test_rows_are_as_high_as_their_longest_text() -> None:
    long, short = Captioned(IMAGE, LONG), Captioned(IMAGE, "a dog")
    height = IMAGE_SIDE + MARGIN
    sheet = draw_sheet([short] * 4 + [long] + [short] * 4)
    assert sheet.height == 3 * height + (1 + TEXT_LINES + 1) * LINE_HEIGHT + MARGIN


def test_a_sheet_of_nothing_is_an_empty_page() -> None:
    assert (np.asarray(draw_sheet([])) == 255).all()
