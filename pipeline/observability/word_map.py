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

INK, GREY, PALE, BLUE = (28, 30, 36), (110, 114, 124), (190, 196, 206), (38, 98, 196)

NUM_NEIGHBOURS = 8


class Label(NamedTuple):
    """A word's label."""

    number: int  # of the word
    text: str
    style: Style
    left: float  # pixels in the image
    baseline: float


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
        start = (label.left, label.baseline)
        draw_line(draw, start, label.text, label.style, INK, halo=2)
    title = clean(title)
    style = style_for(title, TITLE_SIZE)
    for line in wrap(title, SIDE - 2 * MARGIN, 1, style):
        draw_line(draw, (MARGIN, MARGIN), line, style, GREY)
    return image, len(labels)


def place_labels(words: list[str], dots: np.ndarray) -> list[Label]:
    """Give the words labels beside their dots, the commonest first, where there is room.

    No label covers another one, or the dot of a word that has a label.

    Args:
        words: V words, the commonest first.
        dots: (V, 2) float, pixels in the image.
    """
    labels: list[Label] = []
    taken = np.empty((0, 4))  # left, top, right, bottom of labels and of labelled dots
    for number, (word, (x, y)) in enumerate(zip(words, dots.tolist(), strict=True)):
        if len(labels) == LABEL_SIZES[-1][0]:
            break
        size = next(size for count, size in LABEL_SIZES if len(labels) < count)
        style = style_for(word, size)
        text = "".join(wrap(clean(word), LABEL_WIDTH, 1, style))
        dot = np.array([x, y, x, y]) + LABELLED_DOT * np.array([-1, -1, 1, 1])
        if not text or _overlaps(dot, taken):
            continue
        for box in _boxes(x, y, line_width(text, style), size):
            inside = box[:2].min() >= 0 and box[2:].max() <= SIDE and box[1] >= TITLE_HEIGHT - GAP
            if inside and not _overlaps(box, taken):
                taken = np.vstack([taken, box, dot])
                baseline = float(box[1]) + 0.95 * size
                labels.append(Label(number, text, style, float(box[0]), baseline))
                break
    return labels


def _boxes(x: float, y: float, width: float, size: int) -> list[np.ndarray]:
    """Where a label may lie beside its dot, best first: right, left, above, below, in corners."""
    height = 1.25 * size
    away = LABELLED_DOT + GAP
    corners = [
        (x + away, y - height / 2), (x - away - width, y - height / 2),
        (x - width / 2, y - LABELLED_DOT - height), (x - width / 2, y + LABELLED_DOT),
        (x + GAP, y - height - 1), (x + GAP, y + 1),
        (x - GAP - width, y - height - 1), (x - GAP - width, y + 1),
    ]  # fmt: skip
    return [np.array([left, top, left + width, top + height]) for left, top in corners]


def _overlaps(box: np.ndarray, taken: np.ndarray) -> bool:
    """Whether a box is nearer than `GAP` to one of (n, 4) boxes, left and right."""
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
