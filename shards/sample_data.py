"""The sample data set: drawn scenes with five true captions each, in COCO's layout.

    python -m shards.sample_data RESULTS.json ANNOTATIONS.json

counts the images that a captioner described without a mistake. Needs Pillow and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from shards.arguments import CommandParser
from shards.sample_captions import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Shape,
    caption_is_true,
    captions_of,
    random_scene,
    scene_from_json,
    scene_to_json,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "PLACES",
    "SHAPES",
    "SIDE",
    "SIZES",
    "Mistake",
    "Scene",
    "Shape",
    "caption_is_true",
    "captions_of",
    "draw_data_set",
    "draw_scene",
    "main",
    "random_scene",
    "scene_from_json",
    "scene_to_json",
    "score_truth",
]

SIDE = 192  # pixels
SUPERSAMPLE = 4  # each pixel is the mean of 4 x 4
JPEG_QUALITY = 90
SPLITS = ("train", "val")
VAL_EVERY = 10  # one image in ten is a validation image

# Pixels. Shapes in neighbouring places cannot touch: their centres are at least
# 2 * (STEP - JITTER) = 92 apart, and two radii are at most 86.
MARGIN, STEP, JITTER = 48.0, 48.0, 2.0
RADIUS = {"small": (32.0, 34.0), "large": (41.0, 43.0)}
SHADOW = (2.0, 3.0)
TILT = math.radians(3)

Point = tuple[float, float]
Colour = tuple[int, int, int]


def draw_scene(scene: Scene, rng: random.Random) -> Image.Image:
    """Draws the scene as a SIDE x SIDE RGB image.

    `rng` moves, scales, tilts and shades the shapes a little, never so far that a caption would
    become wrong.
    """
    background = _shade(BACKGROUNDS[scene.background], rng.uniform(0.97, 1.02))
    image = Image.new("RGB", (SIDE * SUPERSAMPLE, SIDE * SUPERSAMPLE), background)
    draw = ImageDraw.Draw(image)
    spots = [(shape, *_spot(shape, rng)) for shape in scene.shapes]
    # All shadows are drawn before all shapes, so that none falls on a neighbour.
    for shape, (x, y), radius, tilt in spots:
        below = (x + SHADOW[0], y + SHADOW[1])
        _draw_shape(draw, shape.shape, below, radius, tilt, _shade(background, 0.86))
    for shape, centre, radius, tilt in spots:
        colour = _shade(COLOURS[shape.colour], rng.uniform(0.94, 1.04))
        _draw_shape(draw, shape.shape, centre, radius, tilt, colour)
    return image.reduce(SUPERSAMPLE)


def _spot(shape: Shape, rng: random.Random) -> tuple[Point, float, float]:
    """Centre and radius in pixels, tilt in radians."""
    column, row = PLACES[shape.place]
    x = MARGIN + STEP * column + rng.uniform(-JITTER, JITTER)
    y = MARGIN + STEP * row + rng.uniform(-JITTER, JITTER)
    return (x, y), rng.uniform(*RADIUS[shape.size]), rng.uniform(-TILT, TILT)


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def _corners(shape: str) -> list[Point]:
    """The outline of a polygonal shape in the unit circle, y downwards."""
    if shape == "cross":
        arm, long = 0.2, math.sqrt(1 - 0.2**2)
        quarter = [(arm, -arm), (arm, -long), (-arm, -long)]
        turns = [(1, 0), (0, -1), (-1, 0), (0, 1)]  # cosine and sine of a quarter turn each
        return [(x * c - y * s, x * s + y * c) for c, s in turns for x, y in quarter]
    angles = [2 * math.pi * i / 3 - math.pi / 2 for i in range(3)]
    return [(math.cos(a), math.sin(a)) for a in angles]


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, centre: Point, radius: float, tilt: float, colour: Colour
) -> None:
    x, y, radius = centre[0] * SUPERSAMPLE, centre[1] * SUPERSAMPLE, radius * SUPERSAMPLE
    if shape in ("circle", "ring"):
        radius *= 0.92  # a circle looks larger than a pointed shape of the same radius
        width = round(radius if shape == "circle" else radius * 0.4)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
        return
    cos, sin = math.cos(tilt) * radius, math.sin(tilt) * radius
    draw.polygon(
        [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in _corners(shape)], fill=colour
    )


def draw_data_set(
    out_dir: Path,
    num_images: int,
    seed: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> None:
    """Draws images 1 to `num_images` and writes them with their captions in COCO's layout.

        out_dir/{train2017,val2017}/000000000001.jpg ...
        out_dir/annotations/captions_{train,val}2017.json

    A tenth of the images, rounded up, is val. Image i and its captions depend on (seed, i) alone,
    so a larger set contains the smaller ones. No val scene is a train scene, even with different
    seeds. Each image has the key "scene" besides those of COCO. The annotation files are written
    last: where they exist, the set is complete.

    Args:
        progress: receives the image numbers, a sized iterable, and passes them on, like `tqdm`.
    Raises:
        ValueError: `num_images` is below 2, too few for a train and a val image.
    """
    if num_images < 2:
        raise ValueError(
            f"--images must be 2 or more, not {num_images}: one for train, one for val"
        )
    for split in SPLITS:
        (out_dir / f"{split}2017").mkdir(parents=True, exist_ok=True)
        _annotation_path(out_dir, split).unlink(missing_ok=True)
    images: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    annotations: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for image_id in progress(range(1, num_images + 1)):
        split = "val" if image_id % VAL_EVERY == 1 else "train"
        rng = random.Random(f"{seed}/{image_id}")  # a string's seed is the same in every process
        scene = _scene_of_split(split, rng)
        image = _coco_image(image_id, scene)
        path = out_dir / f"{split}2017" / image["file_name"]
        draw_scene(scene, rng).save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        images[split].append(image)
        annotations[split] += [
            {"image_id": image_id, "id": image_id * 10 + i, "caption": caption}
            for i, caption in enumerate(captions_of(scene, rng))
        ]
    for split in SPLITS:
        _write_annotations(_annotation_path(out_dir, split), images[split], annotations[split])


def _scene_of_split(split: str, rng: random.Random) -> Scene:
    """Draws scenes until one belongs to the split.

    The hash of the scene decides where it belongs. So the splits share no scene, and still an image
    does not depend on the images that were drawn before it.
    """
    while True:
        scene = random_scene(rng)
        text = json.dumps(scene_to_json(scene), sort_keys=True)
        digest = hashlib.sha256(text.encode()).digest()
        if (digest[0] % VAL_EVERY == 0) == (split == "val"):
            return scene


def _annotation_path(out_dir: Path, split: str) -> Path:
    return out_dir / "annotations" / f"captions_{split}2017.json"


def _coco_image(image_id: int, scene: Scene) -> dict[str, Any]:
    return {
        "license": 1,
        "file_name": f"{image_id:012d}.jpg",
        "coco_url": "",
        "height": SIDE,
        "width": SIDE,
        "date_captured": "2017-01-01 00:00:00",
        "flickr_url": "",
        "id": image_id,
        "scene": scene_to_json(scene),
    }


def _write_annotations(
    path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> None:
    document = {
        "info": {
            "description": "Capstream sample data set: drawn scenes",
            "url": "",
            "version": "1.0",
            "year": 2017,  # all dates are fixed, so that the bytes are
            "contributor": "Capstream",
            "date_created": "2017/01/01",
        },
        "licenses": [
            {
                "url": "https://creativecommons.org/publicdomain/zero/1.0/",
                "id": 1,
                "name": "CC0 1.0 Universal",
            }
        ],
        "images": images,
        "annotations": annotations,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document) + "\n", encoding="utf-8")
    os.replace(partial, path)


@dataclass(frozen=True)
class Mistake:
    """A caption that is wrong for its scene (None if it is missing), and a true one."""

    image_id: int
    caption: str | None
    true_caption: str


def score_truth(
    results: Sequence[Mapping[str, Any]], annotations: Mapping[str, Any]
) -> tuple[int, int, list[Mistake]]:
    """Counts the scenes that a captioner described without a mistake.

    Args:
        results: COCO results, [{"image_id": int, "caption": str}, ...]. An image without one
            counts as a mistake.
        annotations: a COCO captions document whose images have "scene".
    Returns:
        num_scenes, num_true, and the mistakes in the order of the images.
    Raises:
        ValueError: results of unknown, repeated or missing ids, or images without scenes.
    """
    try:
        scenes = {image["id"]: scene_from_json(image["scene"]) for image in annotations["images"]}
        references = {note["image_id"]: note["caption"] for note in annotations["annotations"]}
    except (KeyError, TypeError) as error:
        raise ValueError("the annotations have no scenes: not a sample data set") from error
    if not scenes:
        raise ValueError("the annotations have no images")
    captions = _captions_by_image(results)
    if unknown := captions.keys() - scenes.keys():
        some = ", ".join(str(image_id) for image_id in sorted(unknown)[:3])
        raise ValueError(f"{len(unknown)} image ids are not in the annotations: {some}")
    mistakes = [
        Mistake(image_id, captions.get(image_id), references.get(image_id, ""))
        for image_id, scene in scenes.items()
        if not caption_is_true(captions.get(image_id, ""), scene)
    ]
    return len(scenes), len(scenes) - len(mistakes), mistakes


def _captions_by_image(results: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    if not isinstance(results, list):
        raise ValueError("the results are not a list: not a COCO results file")
    captions: dict[int, str] = {}
    for result in results:
        try:
            image_id, caption = result["image_id"], result["caption"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a COCO result: {result!r}") from error
        if not isinstance(image_id, int) or not isinstance(caption, str):
            raise ValueError(f"not a COCO result: {result!r}")
        if image_id in captions:
            raise ValueError(f"image {image_id} has more than one result")
        captions[image_id] = caption
    return captions


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 2 after one line on stderr for files that do not fit."""
    parser = CommandParser(
        prog="python -m shards.sample_data",
        description="Tell how many scenes of the sample data set were described without a mistake.",
    )
    parser.add_argument("results", type=Path, help="COCO results file of a captioner")
    parser.add_argument("annotations", type=Path, help="captions_val2017.json of the sample data")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    try:
        results = json.loads(args.results.read_text(encoding="utf-8"))
        annotations = json.loads(args.annotations.read_text(encoding="utf-8"))
        num_scenes, num_true, mistakes = score_truth(results, annotations)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    share = num_true / num_scenes
    if args.json:
        print(json.dumps({"scenes": num_scenes, "true": num_true, "share": round(share, 4)}))
        return 0
    print(f"Scenes described without a mistake: {num_true} of {num_scenes} ({100 * share:.1f} %)")
    for mistake in mistakes[:3]:
        said = "nothing" if mistake.caption is None else f'"{mistake.caption}"'
        print(f'  image {mistake.image_id}: said {said}; true is "{mistake.true_caption}"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
