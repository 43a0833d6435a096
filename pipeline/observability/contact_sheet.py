"""A sheet of pictures with their captions, as one picture."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PICTURE = 192  # side in pixels
MARGIN = 12
TEXT_LINES = 5
FONT_SIZE = 13
LINE_HEIGHT = 17
COLUMNS = 4
LINE_CHARACTERS = 28

INK, GREY = (24, 24, 24), (120, 120, 120)


@dataclass(frozen=True)
class Captioned:
    """A picture, what was said of it, and what people say of it (or nothing)."""

    pixels: np.ndarray  # (S, S, 3) uint8
    caption: str
    reference: str = ""


def draw_sheet(pictures: Sequence[Captioned]) -> Image.Image:
    """Pictures in rows of four, the generated caption in black, a reference in grey below.

    Returns:
        An RGB picture.
    """
    columns = min(COLUMNS, max(len(pictures), 1))
    rows = -(-len(pictures) // columns)
    cell_w, cell_h = PICTURE + MARGIN, PICTURE + TEXT_LINES * LINE_HEIGHT + MARGIN
    sheet = Image.new("RGB", (columns * cell_w + MARGIN, rows * cell_h + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for number, picture in enumerate(pictures):
        x = MARGIN + number % columns * cell_w
        y = MARGIN + number // columns * cell_h
        image = Image.fromarray(picture.pixels)
        sheet.paste(image.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS), (x, y))
        draw.rectangle((x, y, x + PICTURE - 1, y + PICTURE - 1), outline=GREY)
        said = [(line, INK) for line in textwrap.wrap(picture.caption, LINE_CHARACTERS)]
        wanted = [(line, GREY) for line in textwrap.wrap(picture.reference, LINE_CHARACTERS)]
        for row, (line, colour) in enumerate((said + wanted)[:TEXT_LINES]):
            draw.text((x, y + PICTURE + 4 + row * LINE_HEIGHT), line, colour, font)
    return sheet
