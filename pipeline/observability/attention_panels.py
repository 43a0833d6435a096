"""Where a decoder looked: each image with one panel for each token of its caption.

T tokens, P grid positions of G rows and G columns, S image side in pixels
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pipeline.observability.contact_sheet import (
    BLACK,
    FONT_SIZE,
    GREY,
    IMAGE_SIDE,
    LINE_HEIGHT,
    MARGIN,
    TextLine,
    draw_cell,
)
from pipeline.observability.text import clean, draw_line, style_for, wrap

PANELS = 7  # of a line, right of the image
TEXT_LINES = 3  # below a panel: the token, the largest weight, the share of the sentinel
LEGEND_LINES = 4  # at the most, where the sheet is narrow
LEGEND = (
    "The brightness of a position is its attention weight for the word below, divided by the "
    "largest weight of the panel (max)."
)
DARKEST = 0.15  # of the brightness of the image, where the weight is 0
NO_SENTINEL = 1e-3  # a share below this is rounding


@dataclass(frozen=True)
class Attended:
    """An image, its generated caption, and where the decoder looked for each token."""

    pixels: np.ndarray  # (S, S, 3) uint8: what the encoder saw
    caption: str
    tokens: Sequence[str]  # T
    attention: np.ndarray  # (T, P) float32, the positions row by row


def draw_attention(images: Sequence[Attended]) -> Image.Image:
    """Draw for each image the image with its caption, and a panel for each token right of it.

    A caption of more than `PANELS` tokens continues in further lines of panels.

    Returns:
        An RGB image.
    """
    columns = min(PANELS, max((len(image.tokens) for image in images), default=0))
    width = (columns + 1) * (IMAGE_SIDE + MARGIN) + MARGIN
    style = style_for(LEGEND, FONT_SIZE)
    legend = wrap(LEGEND, width - 2 * MARGIN, LEGEND_LINES, style)
    rows = [_draw_row(image, width) for image in images]
    top = 2 * MARGIN + len(legend) * LINE_HEIGHT
    sheet = Image.new("RGB", (width, top + sum(row.height for row in rows)), "white")
    for number, line in enumerate(legend, 1):
        draw_line(ImageDraw.Draw(sheet), (MARGIN, number * LINE_HEIGHT), line, style, GREY)
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _draw_row(image: Attended, width: int) -> Image.Image:
    """One image and its panels, as wide as the sheet."""
    cell_w, cell_h = IMAGE_SIDE + MARGIN, IMAGE_SIDE + TEXT_LINES * LINE_HEIGHT + MARGIN
    columns = max((width - MARGIN) // cell_w - 1, 1)
    num_lines = max(-(-len(image.tokens) // columns), 1)
    row = Image.new("RGB", (width, num_lines * cell_h + MARGIN), "white")
    draw = ImageDraw.Draw(row)
    max_lines = TEXT_LINES + (num_lines - 1) * cell_h // LINE_HEIGHT
    draw_cell(row, draw, (MARGIN, 0), image.pixels, _text(image.caption, BLACK, max_lines))
    shares = 1 - image.attention.sum(axis=1)
    has_sentinel = bool((shares > NO_SENTINEL).any())
    panels = zip(image.tokens, image.attention, shares.tolist(), strict=True)
    for number, (token, weights, share) in enumerate(panels):
        corner = (MARGIN + (number % columns + 1) * cell_w, number // columns * cell_h)
        lines = _text(token, BLACK, 1) + _text(f"max {weights.max():.2f}", GREY, 1)
        if has_sentinel:
            lines += _text(f"sentinel {share:.2f}", GREY, 1)
        draw_cell(row, draw, corner, highlight(image.pixels, weights, IMAGE_SIDE), lines)
    return row


def _text(text: str, colour: tuple[int, int, int], max_lines: int) -> list[TextLine]:
    style = style_for(text, FONT_SIZE)
    return [(line, style, colour) for line in wrap(clean(text), IMAGE_SIDE, max_lines, style)]


def highlight(pixels: np.ndarray, weights: np.ndarray, side: int) -> np.ndarray:
    """An image that is darker and greyer, the less weight a position has.

    The weights are interpolated between the centres of the positions and scaled to the largest, so
    that panels with few and with many bright positions are both readable.

    Args:
        pixels: (S, S, 3) uint8.
        weights: (P,) float32, not negative; P is a square number.
        side: of the result, in pixels.
    Returns:
        (side, side, 3) uint8.
    """
    grid = math.isqrt(len(weights))
    assert grid * grid == len(weights)
    size = (side, side)
    shown = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    coarse = Image.fromarray(weights.reshape(grid, grid).astype(np.float32))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).clip(min=0)
    light = (smooth / max(smooth.max(), 1e-12))[..., None]
    grey = np.asarray(shown.convert("L"), np.float32)[..., None]
    mixed = light * np.asarray(shown, np.float32) + (1 - light) * DARKEST * grey
    rounded: np.ndarray = mixed.round().astype(np.uint8)
    return rounded
