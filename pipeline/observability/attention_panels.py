"""Where a decoder looked: each image with one panel for each token of its caption.

T tokens, P grid positions of G rows and G columns, S image side in pixels
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
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

PANELS = 7  # at most, in a line right of the image
GAP = LINE_HEIGHT  # pixels, below the panels of an image
LEAST_SCALE = 3  # times the mean: nearly equal weights are drawn as nearly equal, and not bright
LEGEND_LINES = 6  # at most, where the sheet is narrow
LEGEND = (
    "Attention weight of each position for the token below a panel: from 0 to the largest weight "
    f"of that panel (max), or to {LEAST_SCALE} times the mean if max is less."
)
BAR_HEIGHT = 10  # pixels, of the colours in the legend
IMAGE_SHARE = 0.5  # of the grey image in a panel; the rest is the colour of the weight
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
    longest = max((len(image.tokens) for image in images), default=1)
    columns = min(PANELS, max(longest, 1))
    parts = [_legend(columns), *(_draw_row(image, columns) for image in images)]
    height = sum(part.height for part in parts)
    sheet = Image.new("RGB", (_width(columns), height + MARGIN), "white")
    top = MARGIN
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _width(columns: int) -> int:
    """Of the image and so many panels, in pixels."""
    return MARGIN + (columns + 1) * (IMAGE_SIDE + MARGIN)


def _legend(columns: int) -> Image.Image:
    """The colours below the images, and beside them what they mean."""
    style = style_for(LEGEND, FONT_SIZE)
    left = IMAGE_SIDE + 2 * MARGIN
    lines = wrap(LEGEND, _width(columns) - MARGIN - left, LEGEND_LINES, style)
    legend = Image.new("RGB", (_width(columns), len(lines) * LINE_HEIGHT + MARGIN), "white")
    bar = _colours(np.linspace(0, 1, IMAGE_SIDE)[None].repeat(BAR_HEIGHT, axis=0))
    legend.paste(Image.fromarray(bar), (MARGIN, (LINE_HEIGHT - BAR_HEIGHT) // 2))
    for number, line in enumerate(lines):
        baseline = number * LINE_HEIGHT + FONT_SIZE
        draw_line(ImageDraw.Draw(legend), (left, baseline), line, style, GREY)
    return legend


def _draw_row(image: Attended, columns: int) -> Image.Image:
    """One image and its panels."""
    shares = 1 - image.attention.sum(axis=1)
    has_sentinel = bool((shares > NO_SENTINEL).any())
    cell_w = IMAGE_SIDE + MARGIN
    cell_h = IMAGE_SIDE + (3 if has_sentinel else 2) * LINE_HEIGHT + MARGIN
    height = max(-(-len(image.tokens) // columns), 1) * cell_h + GAP
    row = Image.new("RGB", (_width(columns), height), "white")
    draw = ImageDraw.Draw(row)
    caption = _text(image.caption, BLACK, (height - IMAGE_SIDE - MARGIN) // LINE_HEIGHT)
    draw_cell(row, draw, (MARGIN, 0), image.pixels, caption)
    panels = zip(image.tokens, image.attention, shares.tolist(), strict=True)
    for number, (token, weights, share) in enumerate(panels):
        corner = (MARGIN + (number % columns + 1) * cell_w, number // columns * cell_h)
        lines = _text(token, BLACK, 1) + _text(f"max {weights.max():.3f}", GREY, 1)
        if has_sentinel:
            lines += _text(f"sentinel {share:.3f}", GREY, 1)
        draw_cell(row, draw, corner, highlight(image.pixels, weights, IMAGE_SIDE), lines)
    return row


def _text(text: str, colour: tuple[int, int, int], max_lines: int) -> list[TextLine]:
    style = style_for(text, FONT_SIZE)
    return [(line, style, colour) for line in wrap(clean(text), IMAGE_SIDE, max_lines, style)]


def highlight(pixels: np.ndarray, weights: np.ndarray, side: int) -> np.ndarray:
    """A grey image under the colours of weights, brighter where a weight is larger.

    The weights are interpolated between the centres of the positions. The scale ends at the largest
    weight, but at `LEAST_SCALE` times the mean if that is more.

    Args:
        pixels: (S, S, 3) uint8.
        weights: (P,) float32, not negative; P is a square number.
        side: of the result, in pixels.
    Returns:
        (side, side, 3) uint8.
    """
    grid = math.isqrt(len(weights))
    assert grid * grid == len(weights)
    shown = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
    grey = np.asarray(shown.convert("L"), np.float32)[..., None]
    coarse = Image.fromarray(weights.reshape(grid, grid).astype(np.float32))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).clip(min=0)
    scale = max(smooth.max(), LEAST_SCALE * weights.mean(), np.finfo(np.float32).tiny)
    colours = _colours(smooth / scale)
    mixed: np.ndarray = IMAGE_SHARE * grey + (1 - IMAGE_SHARE) * colours
    return mixed.round().astype(np.uint8)


def _colours(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 as colours of even steps, black to yellow: (H, W) -> (H, W, 3) uint8."""
    levels = (255 * values).round().astype(np.uint8)
    return cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]
