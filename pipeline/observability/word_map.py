"""A map of words: as an image with labels, and as a page that can be searched.

V words, K neighbours of each
"""

import json
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pipeline.observability.text import Style, clean, draw_line, line_width, style_for, wrap
from pipeline.observability.word_vectors import WordVectors, nearest

SIDE = 1600  # pixels of the image, both ways
MARGIN = 48
TITLE_SIZE = 24  # of the font, in pixels
TITLE_HEIGHT = 72

# So many labels at the most, and the size of their font; the commonest words are the largest.
LABEL_SIZES = ((25, 24), (100, 19), (400, 15))
LABEL_WIDTH = 260  # pixels; a longer word ends with an ellipsis
DOT, LABELLED_DOT = 2, 4  # radius in pixels
GAP = 4  # pixels between a dot and its label, and between labels
# Further distances at which a very common word may have its label; a line then leads to the dot.
LEADERS = (16, 32, 56, 84)  # pixels
NUM_WITH_LEADERS = 100  # so many of the commonest words

INK, GREY, PALE, BLUE = (28, 30, 36), (110, 114, 124), (190, 196, 206), (38, 98, 196)

NUM_NEIGHBOURS = 8


class Label(NamedTuple):
    """A word's label."""

    number: int  # of the word
    text: str
    style: Style
    left: float  # pixels in the image
    baseline: float
    leader: tuple[float, float] | None  # end of a line from the dot to a label that is far from it


def draw_map(words: WordVectors, places: np.ndarray, title: str) -> tuple[Image.Image, int]:
    """Draw a dot for each word, and labels of the commonest words that have room.

    Args:
        places: (V, 2) float, from 0 to 1.
    Returns:
        An RGB image, and the number of labels in it.
    """
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    room = np.array([SIDE - 2 * MARGIN, SIDE - TITLE_HEIGHT - MARGIN])
    dots = np.array([MARGIN, TITLE_HEIGHT]) + room / 2 + (places - 0.5) * room.min()
    labels = place_labels(words.words, dots)
    labelled = {label.number for label in labels}
    for number in reversed(range(len(dots))):  # the commonest on top
        colour, radius = (BLUE, LABELLED_DOT) if number in labelled else (PALE, DOT)
        draw.circle(tuple(dots[number]), radius, colour)
    for label in labels:
        if label.leader:
            draw.line((*dots[label.number], *label.leader), BLUE)
    for label in labels:
        start = (label.left, label.baseline)
        draw_line(draw, start, label.text, label.style, INK, halo=2)
    title = clean(title)
    style = style_for(title, TITLE_SIZE)
    for line in wrap(title, SIDE - 2 * MARGIN, 1, style):
        draw_line(draw, (MARGIN, MARGIN), line, style, GREY)
    return image, len(labels)


def place_labels(words: list[str], dots: np.ndarray) -> list[Label]:
    """Give the words labels beside their dots, the commonest first, where there is room.

    No label covers another one, the dot of a word that has a label, or that of a very common word.

    Args:
        words: V words, the commonest first.
        dots: (V, 2) float, pixels in the image.
    """
    labels: list[Label] = []
    boxes = np.empty((0, 4))  # left, top, right, bottom of the labels
    around = np.hstack([dots - LABELLED_DOT, dots + LABELLED_DOT])  # the boxes of the dots
    kept_free = around[:NUM_WITH_LEADERS]
    for number, word in enumerate(words):
        if len(labels) == LABEL_SIZES[-1][0]:
            break
        size = next(size for count, size in LABEL_SIZES if len(labels) < count)
        style = style_for(word, size)
        text = "".join(wrap(clean(word), LABEL_WIDTH, 1, style))
        if not text or _overlaps(around[number], boxes):
            continue
        width = line_width(text, style)
        for distance in (0, *LEADERS) if number < NUM_WITH_LEADERS else (0,):
            box = _free_box(dots[number], (width, 1.25 * size), distance, [boxes, kept_free])
            if box is not None:
                end = np.clip(dots[number], box[:2], box[2:]).tolist() if distance else None
                baseline = float(box[1]) + 0.95 * size
                labels.append(Label(number, text, style, float(box[0]), baseline, end))
                boxes = np.vstack([boxes, box])
                kept_free = np.vstack([kept_free, around[number]])
                break
    return labels


def _free_box(
    dot: np.ndarray, shape: tuple[float, float], distance: float, taken: list[np.ndarray]
) -> np.ndarray | None:
    """Where a label may lie beside its dot: right, left, above, below, or in a corner.

    Args:
        shape: width and height of the label.
        distance: pixels, beyond the usual one.
        taken: (n, 4) boxes that it must not cover.
    Returns:
        (4,) left, top, right, bottom; None if there is no room.
    """
    (x, y), (width, height) = dot.tolist(), shape
    away, slant = LABELLED_DOT + GAP + distance, GAP + 0.7 * distance
    left, right = x - width - away, x + away
    above, below = y - height - LABELLED_DOT - distance, y + LABELLED_DOT + distance
    corners = [
        (right, y - height / 2), (left, y - height / 2),
        (x - width / 2, above), (x - width / 2, below),
        *((side, end) for end in (y - height - slant, y + slant)
          for side in (x + slant, x - slant - width)),
    ]  # fmt: skip
    for corner in corners:
        box = np.array([*corner, corner[0] + width, corner[1] + height])
        inside = box.min() >= 0 and box.max() <= SIDE and box[1] >= TITLE_HEIGHT - GAP
        if inside and not any(_overlaps(box, boxes) for boxes in taken):
            return box
    return None


def _overlaps(box: np.ndarray, taken: np.ndarray) -> bool:
    """Whether a box covers one of (n, 4) boxes, or is nearer to its side than `GAP`."""
    apart = (
        (box[2] + GAP <= taken[:, 0])
        | (taken[:, 2] + GAP <= box[0])
        | (box[3] <= taken[:, 1])
        | (taken[:, 3] <= box[1])
    )
    return not apart.all()


def map_page(words: WordVectors, places: np.ndarray, title: str) -> str:
    """The map as one HTML page that needs no other file and asks no server.

    Args:
        places: (V, 2) float, from 0 to 1.
    """
    neighbours, cosines = nearest(words.vectors, NUM_NEIGHBOURS)
    data: dict[str, Any] = {
        "title": title,
        "words": words.words,
        "counts": None if words.counts is None else words.counts.tolist(),
        "places": np.round(places.astype(float), 4).tolist(),
        "neighbours": neighbours.tolist(),
        "cosines": np.round(cosines.astype(float), 3).tolist(),
    }
    template = files(__package__).joinpath("word_map.html").read_text(encoding="utf-8")
    return template.replace("{{data}}", _json_in_html(data))


# Within a script element, only "<" could begin a tag or end the element.
_dumps = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


def _json_in_html(data: dict[str, Any]) -> str:
    return _dumps(data).replace("<", "\\u003c")
