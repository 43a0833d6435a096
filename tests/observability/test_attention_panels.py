"""Attention panels: bright where the decoder looked, one for each token, wrapped into lines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.observability.attention_panels import GAP, PANELS, Attended, draw_attention, highlight
from pipeline.observability.contact_sheet import GREY, IMAGE_SIDE, LINE_HEIGHT, MARGIN

IMAGE = np.full((24, 24, 3), 90, dtype=np.uint8)
CELL = IMAGE_SIDE + MARGIN
LINE = CELL + 2 * LINE_HEIGHT  # of panels without a sentinel


def looking_at(position: int, num_positions: int = 9, weight: float = 1.0) -> np.ndarray:
    weights = np.zeros(num_positions, np.float32)
    weights[position] = weight
    return weights


def attended(num_tokens: int, weight: float = 1.0) -> Attended:
    maps = [looking_at(4, weight=weight)] * num_tokens
    return Attended(IMAGE, "a dog", ["dog"] * num_tokens, np.array(maps).reshape(-1, 9))


def luminance(pixels: np.ndarray) -> np.ndarray:
    return pixels @ np.array([0.2126, 0.7152, 0.0722])


@given(st.integers(0, 15), st.integers(0, 255), st.floats(1e-6, 1))
def test_a_panel_is_brightest_where_the_decoder_looked(
    position: int, shade: int, weight: float
) -> None:
    pixels = np.full((20, 20, 3), shade, dtype=np.uint8)
    panel = highlight(pixels, looking_at(position, 16, weight), 40)
    assert panel.shape == (40, 40, 3)
    cells = luminance(panel).reshape(4, 10, 4, 10).mean(axis=(1, 3)).flatten()
    others = np.delete(cells, position)
    assert cells[position] > others.max() + 20
    far = np.hypot(*(np.indices((4, 4)).reshape(2, 16).T - divmod(position, 4)).T) > 2
    assert np.ptp(cells[far]) < 2  # nothing is seen where there is no weight
    assert np.array_equal(panel, highlight(pixels, looking_at(position, 16), 40))  # scaled


def test_nearly_equal_weights_do_not_look_like_a_focus() -> None:
    equal, uneven = np.full(9, 1 / 9, np.float32), np.full(9, 0.11, np.float32)
    uneven[4] = 0.12
    panels = [luminance(highlight(IMAGE, weights, 30)) for weights in (equal, uneven)]
    assert np.ptp(panels[0]) < 1
    assert 1 < np.ptp(panels[1]) < 10
    assert (
        max(panel.max() for panel in panels) < luminance(highlight(IMAGE, looking_at(4), 30)).max()
    )


def test_the_image_stays_visible() -> None:
    halves = np.repeat(np.array([20, 230], np.uint8), 12)[None, :, None]
    panel = luminance(highlight(halves.repeat(24, 0).repeat(3, 2), np.full(4, 0.25, "f"), 24))
    assert np.ptp(panel[:, :8]) < 1
    assert panel[:, 16:].mean() > panel[:, :8].mean() + 80


@pytest.mark.parametrize("num_tokens", [0, 1, PANELS, PANELS + 1, 3 * PANELS])
def test_the_panels_wrap_into_lines_beside_the_image(num_tokens: int) -> None:
    one, two = (draw_attention([attended(num_tokens)] * count) for count in (1, 2))
    columns = min(max(num_tokens, 1), PANELS)
    num_lines = max(-(-num_tokens // PANELS), 1)
    assert one.width == two.width == (columns + 1) * CELL + MARGIN
    assert two.height - one.height == num_lines * LINE + GAP
    rows = np.asarray(two)[one.height :]  # of the second image
    corners = {
        (MARGIN + (n % columns + 1) * CELL, n // columns * LINE) for n in range(num_tokens)
    } | {(MARGIN, 0)}
    places = ((c * CELL + MARGIN, r * LINE) for c in range(columns + 1) for r in range(num_lines))
    assert corners == {(x, y) for x, y in places if tuple(rows[y, x]) == GREY}  # their frames


def test_the_share_of_a_sentinel_has_a_line_of_its_own() -> None:
    without, with_one = (draw_attention([attended(1, weight)]) for weight in (1.0, 0.25))
    assert with_one.height == without.height + LINE_HEIGHT
    assert (np.asarray(with_one)[-GAP - MARGIN - LINE_HEIGHT : -GAP - MARGIN] < 150).any()


def test_a_sheet_of_nothing_has_only_the_legend() -> None:
    assert draw_attention([]).height < IMAGE_SIDE
