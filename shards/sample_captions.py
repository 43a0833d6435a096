"""The sample data set in words: the contents of a scene, its captions, and checking captions.

Captions are made from `TEMPLATES`. The same templates, read as a grammar, check the captions that a
model wrote. A caption outside this grammar counts as wrong.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

SHAPES = ("circle", "ring", "triangle", "cross")
COLOURS = {
    "red": (214, 38, 48),
    "yellow": (252, 214, 24),
    "green": (38, 150, 70),
    "blue": (38, 92, 214),
    "purple": (146, 62, 186),
}
BACKGROUNDS = {
    "white": (250, 250, 248),
    "gray": (148, 150, 154),
    "pink": (250, 190, 212),
    "beige": (228, 210, 172),
}
SIZES = ("small", "large")
# Name -> (column, row) on a board. Two places always differ in column or row, so any two shapes of
# a scene have a relation.
PLACES = {
    "top left": (0, 0),
    "top right": (2, 0),
    "bottom left": (0, 2),
    "bottom right": (2, 2),
}
COUNTS = {1: "one shape", 2: "two shapes", 3: "three shapes"}
NUM_CAPTIONS = 5

# Template -> weight with which it is chosen. Nearly every template begins with other words: after
# them the rest of the caption depends on the image alone, and a model need not guess the wording.
# The plainest template is the most frequent, because a greedy decoder follows it. The word
# "picture" is part of the data: changing it would change every sample data set.
TEMPLATES = {
    "{things} on a {background} background": 12.0,
    "{things} in a {background} picture": 4.0,
    "there is {things} in a {background} picture": 4.0,
    "the {background} picture shows {things}": 4.0,
    "look: {sized} on a {background} background": 4.0,
    "here is {placed} on a {background} background": 4.0,
    "{count} on a {background} background: {things}": 3.0,
    "we see {relation} on a {background} background": 3.0,
}


@dataclass(frozen=True)
class Shape:
    """One shape of a scene; each field is a word of `SHAPES`, `COLOURS`, `SIZES` or `PLACES`.

    Raises:
        ValueError: a word is none of these.
    """

    shape: str
    colour: str
    size: str
    place: str

    def __post_init__(self) -> None:
        _check_word(self.shape, SHAPES, "shape")
        _check_word(self.colour, COLOURS, "colour")
        _check_word(self.size, SIZES, "size")
        _check_word(self.place, PLACES, "place")


@dataclass(frozen=True)
class Scene:
    """A background, a word of `BACKGROUNDS`, and one to three shapes on it.

    The shapes are kept in the order in which captions name them, by colour and then by shape, so
    two scenes that hold the same are equal.

    Raises:
        ValueError: an unknown background, no or too many shapes, two shapes in one place, or two
            that agree in colour and shape, which a caption could not tell apart.
    """

    background: str
    shapes: tuple[Shape, ...]

    def __post_init__(self) -> None:
        _check_word(self.background, BACKGROUNDS, "background")
        if len(self.shapes) not in COUNTS:
            raise ValueError(f"a scene holds 1 to {max(COUNTS)} shapes, not {len(self.shapes)}")
        if len({shape.place for shape in self.shapes}) < len(self.shapes):
            raise ValueError("two shapes of a scene are in the same place")
        if len({(shape.colour, shape.shape) for shape in self.shapes}) < len(self.shapes):
            raise ValueError("two shapes of a scene agree in colour and shape")
        object.__setattr__(self, "shapes", tuple(sorted(self.shapes, key=_naming_order)))


def _check_word(word: str, words: Mapping[str, object] | tuple[str, ...], kind: str) -> None:
    if word not in words:
        raise ValueError(f"{word!r} is no {kind}: expected one of {', '.join(words)}")


def _naming_order(shape: Shape) -> tuple[int, int]:
    # By colour, not by place: a model learns colours from pooled features long before places.
    return list(COLOURS).index(shape.colour), SHAPES.index(shape.shape)


def random_scene(rng: random.Random) -> Scene:
    """Draws a scene: mostly with one shape, sometimes two, rarely three."""
    (num_shapes,) = rng.choices((1, 2, 3), weights=(35, 4, 1))
    looks = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    return Scene(
        background=rng.choice(list(BACKGROUNDS)),
        shapes=tuple(
            Shape(shape, colour, rng.choice(SIZES), place)
            for (colour, shape), place in zip(
                rng.sample(looks, num_shapes), rng.sample(list(PLACES), num_shapes), strict=True
            )
        ),
    )


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """The scene as plain JSON: {"background": ..., "shapes": [{"shape": ..., ...}]}."""
    return {
        "background": scene.background,
        "shapes": [vars(shape).copy() for shape in scene.shapes],
    }


def scene_from_json(value: Mapping[str, Any]) -> Scene:
    """Reads what `scene_to_json` wrote.

    Raises:
        ValueError: a key is missing or unknown, or the scene is impossible.
    """
    try:
        shapes = tuple(Shape(**shape) for shape in value["shapes"])
        return Scene(background=value["background"], shapes=shapes)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a scene: {value!r}") from error


def captions_of(scene: Scene, rng: random.Random) -> list[str]:
    """Five true English captions of the scene, each from a different template."""
    words = {
        "background": scene.background,
        "count": COUNTS[len(scene.shapes)],
        "things": _listed([_phrase(shape) for shape in scene.shapes]),
        "sized": _listed([_phrase(shape, size=True) for shape in scene.shapes]),
        "placed": _listed([_phrase(shape, place=True) for shape in scene.shapes]),
        "relation": _related(scene, rng),
    }
    unsayable = [f"{{{slot}}}" for slot, text in words.items() if not text]
    fitting = [t for t in TEMPLATES if not any(slot in t for slot in unsayable)]
    # The largest of random ** (1 / weight) are a weighted sample without repetition
    # (Efraimidis and Spirakis, 2006).
    fitting.sort(key=lambda template: rng.random() ** (1 / TEMPLATES[template]), reverse=True)
    texts = [template.format(**words) for template in fitting[:NUM_CAPTIONS]]
    return [text[0].upper() + text[1:] + "." for text in texts]


def _phrase(shape: Shape, *, size: bool = False, place: bool = False) -> str:
    words = f"{shape.size} {shape.colour}" if size else shape.colour
    return f"a {words} {shape.shape}" + (f" in the {shape.place}" if place else "")


def _listed(phrases: list[str]) -> str:
    *head, last = phrases
    return f"{', '.join(head)} and {last}" if head else last


def _related(scene: Scene, rng: random.Random) -> str:
    """Names the relation of two shapes of the scene; empty where there is only one shape."""
    if len(scene.shapes) < 2:
        return ""
    first, second = sorted(rng.sample(scene.shapes, 2), key=_naming_order)
    relation = rng.choice([name for name in RELATIONS if _stands(first, name, second)])
    return f"{_phrase(first)} {relation} {_phrase(second)}"


# Relation -> the step on the board, (columns, rows), that leads from the second shape to the first.
RELATIONS = {
    "above": (0, -1),
    "below": (0, 1),
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
}


def _stands(first: Shape, relation: str, second: Shape) -> bool:
    (column, row), (other_column, other_row) = PLACES[first.place], PLACES[second.place]
    columns, rows = RELATIONS[relation]
    return columns * (column - other_column) + rows * (row - other_row) > 0


def _either(words: Mapping[str, object] | tuple[str, ...]) -> str:
    return "|".join(words)


_THING = re.compile(
    rf"a(?: (?P<size>{_either(SIZES)}))?"
    rf" (?P<colour>{_either(COLOURS)}) (?P<shape>{_either(SHAPES)})"
    rf"(?: in the (?P<place>{_either(PLACES)}))?"
)
_ANY_THING = re.sub(r"\?P<\w+>", "?:", _THING.pattern)
_THINGS = rf"{_ANY_THING}(?:(?:, | and |, and ){_ANY_THING})*"
_SLOTS = {
    "background": _either(BACKGROUNDS),
    "count": _either(tuple(COUNTS.values())),
    "things": _THINGS,
    "sized": _THINGS,
    "placed": _THINGS,
    "relation": f"{_ANY_THING} (?P<how>{_either(RELATIONS)}) {_ANY_THING}",
}


def _grammar(template: str) -> re.Pattern[str]:
    return re.compile(
        "".join(
            re.escape(literal) + (f"(?P<{slot}>{_SLOTS[slot]})" if slot else "")
            for literal, slot, _, _ in Formatter().parse(template)
        )
    )


_GRAMMARS = tuple(_grammar(template) for template in TEMPLATES)


def caption_is_true(caption: str, scene: Scene) -> bool:
    """Whether the caption is a sentence of the grammar and everything it says is true of the scene.

    Case, spaces around punctuation and the final full stop do not matter. A caption may leave
    shapes out, but must not name one twice. A sentence outside the grammar counts as false.
    """
    text = re.sub(r"\s+", " ", caption).strip().lower()
    text = re.sub(r" ?([,:.])", r"\1", text)
    text = re.sub(r"([,:])(?=\S)", r"\1 ", text).removesuffix(".")
    matches = (grammar.fullmatch(text) for grammar in _GRAMMARS)
    return any(_claims_hold(match, scene) for match in matches if match)


def _claims_hold(match: re.Match[str], scene: Scene) -> bool:
    claims = match.groupdict()
    if claims.get("background", scene.background) != scene.background:
        return False
    if claims.get("count", COUNTS[len(scene.shapes)]) != COUNTS[len(scene.shapes)]:
        return False
    things = [_seen(thing, scene) for thing in _THING.finditer(match[0])]
    found = [shape for shape in things if shape is not None]
    if len(set(found)) < len(things):  # something that is not there, or one shape named twice
        return False
    if "count" in claims and found and len(found) < len(scene.shapes):
        return False  # "three shapes: ..." promises all three
    return "how" not in claims or _stands(found[0], claims["how"], found[1])


def _seen(thing: re.Match[str], scene: Scene) -> Shape | None:
    """The shape of the scene that a phrase such as "a large red cross" describes, if any."""
    claims = {field: word for field, word in thing.groupdict().items() if word is not None}
    return next((shape for shape in scene.shapes if claims.items() <= vars(shape).items()), None)
