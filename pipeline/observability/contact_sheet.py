"""A contact sheet: images in rows, each with its captions below it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pipeline.observability.text import Style, clean, draw_line, style_for, wrap

IMAGE_SIDE = 192  # pixels
MARGIN = 12
COLUMNS = 4
FONT_SIZE = 13
LINE_HEIGHT = 18
TEXT_LINES = 5
CAPTION_LINES = 3  # at the most, where a reference caption needs the lines below

BLACK, GREY = (24, 24, 24), (120, 120, 120)

TextLine = tuple[str, Style, tuple[int, int, int]]  # a clean text, its style and its colour


@dataclass(frozen=True)
class Captioned:
    """An image, its generated caption, and a reference caption or nothing."""

    pixels: np.ndarray  # (S, S, 3) uint8
    caption: str
    reference: str = ""


def draw_sheet(images: Sequence[Captioned]) -> Image.Image:
    """Draw images in rows of four, the caption in black and the reference in grey below each.

    A text that is longer than its place ends with an ellipsis.

    Returns:
        An RGB image.
    """
    columns = min(COLUMNS, max(len(images), 1))
    texts = [cell_lines(image.caption, image.reference) for image in images]
    rows = [
        range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)
    ]
    heights = [IMAGE_SIDE + max(len(texts[n]) for n in row) * LINE_HEIGHT + MARGIN for row in rows]
    cell_w = IMAGE_SIDE + MARGIN
    sheet = Image.new("RGB", (columns * cell_w + MARGIN, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, number in enumerate(row):
            left = MARGIN + column * cell_w
            draw_cell(sheet, draw, (left, top), images[number].pixels, texts[number])
        top += height
    return sheet


def draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    pixels: np.ndarray,
    lines: Sequence[TextLine],
) -> None:
    """Draw an image and the lines below it.

    Args:
        corner: left and top of the image in the sheet.
        pixels: (S, S, 3) uint8, resized to `IMAGE_SIDE`.
    """
    left, top = corner
    thumbnail = Image.fromarray(pixels).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    sheet.paste(thumbnail, corner)
    draw.rectangle((left, top, left + IMAGE_SIDE - 1, top + IMAGE_SIDE - 1), outline=GREY)
    for number, (line, style, colour) in enumerate(lines, 1):
        draw_line(draw, (left, top + IMAGE_SIDE + number * LINE_HEIGHT), line, style, colour)


def cell_lines(caption: str, reference: str) -> list[TextLine]:
    """The lines below one image from top to bottom, each with its style and colour."""
    lines: list[TextLine] = []
    for text, colour in ((clean(caption), BLACK), (clean(reference), GREY)):
        left = TEXT_LINES - len(lines)
        max_lines = min(left, CAPTION_LINES) if colour == BLACK and reference else left
        style = style_for(text, FONT_SIZE)
        lines += [(line, style, colour) for line in wrap(text, IMAGE_SIDE, max_lines, style)]
    return lines
