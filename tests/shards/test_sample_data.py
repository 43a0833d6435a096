"""The sample data set: its captions are true, its images reproducible, its layout COCO's."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from shards.sample_captions import COUNTS, RELATIONS, TEMPLATES
from shards.sample_data import (
    BACKGROUNDS,
    COLOURS,
    JITTER,
    MARGIN,
    PLACES,
    RADIUS,
    SHADOW,
    SHAPES,
    SIDE,
    SIZES,
    STEP,
    Scene,
    Shape,
    caption_is_true,
    captions_of,
    draw_data_set,
    draw_scene,
    random_scene,
    scene_from_json,
    scene_to_json,
    score_truth,
)

REPOSITORY = Path(__file__).parents[2]
SCENE = Scene(
    "white",
    (
        Shape("circle", "red", "large", "top left"),
        Shape("ring", "blue", "small", "bottom left"),
        Shape("cross", "yellow", "small", "bottom right"),
    ),
)


def scenes(num_scenes: int) -> list[Scene]:
    rng = random.Random(3)
    return [random_scene(rng) for _ in range(num_scenes)]


def claims(num_scenes: int) -> list[tuple[Scene, str]]:
    rng = random.Random(4)
    return [(scene, text) for scene in scenes(num_scenes) for text in captions_of(scene, rng)]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def load(folder: Path, split: str) -> dict[str, Any]:
    path = folder / "annotations" / f"captions_{split}2017.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("sample")
    draw_data_set(out_dir, 60, seed=7)
    return out_dir


def test_five_different_captions_all_true() -> None:
    rng = random.Random(5)
    for scene in scenes(300):
        captions = captions_of(scene, rng)
        assert len(set(captions)) == 5
        for caption in captions:
            assert caption_is_true(caption, scene), (caption, scene)
            assert caption[0].isupper()
            assert caption.endswith(".")


def test_vocabulary_is_small() -> None:
    texts = [text.lower() for _, text in claims(500)]
    words = {word.strip(",.:") for text in texts for word in text.split()}
    assert len(words) < 60


def test_scenes_vary() -> None:
    assert not set(BACKGROUNDS) & set(COLOURS)
    named = {(shape.size, shape.place) for scene in scenes(300) for shape in scene.shapes}
    assert named == {(size, place) for size in SIZES for place in PLACES}
    assert {len(scene.shapes) for scene in scenes(300)} == set(COUNTS)


@pytest.mark.parametrize("words", [SIZES, PLACES, BACKGROUNDS, COUNTS.values()])
def test_one_wrong_word_is_false(words: Iterable[str]) -> None:
    num_changed = 0
    for scene, caption in claims(150):
        for word, other in itertools.permutations(words, 2):
            for found in re.finditer(rf"\b{word}\b", caption.lower()):
                changed = caption[: found.start()] + other + caption[found.end() :]
                num_changed += 1
                assert not caption_is_true(changed, scene), (changed, scene)
    assert num_changed > 100


def test_wrong_colour_or_shape_is_false() -> None:
    """Only changes into a look that the scene lacks: another may well make a true sentence."""
    num_changed = 0
    for scene, caption in claims(150):
        looks = {(shape.colour, shape.shape) for shape in scene.shapes}
        for colour, shape in looks:
            others = {(new, shape) for new in COLOURS} | {(colour, new) for new in SHAPES}
            if f"{colour} {shape}" not in caption:
                continue
            for new_colour, new_shape in others - looks:
                new = f"{new_colour} {new_shape}"
                changed = caption.replace(f"{colour} {shape}", new)
                num_changed += 1
                assert not caption_is_true(changed, scene), (changed, scene)
    assert num_changed > 1000


def test_swapped_relation_is_false() -> None:
    opposite = {"above": "below", "to the left of": "to the right of"}
    opposite |= {new: old for old, new in opposite.items()}
    assert set(opposite) == set(RELATIONS)
    num_changed = 0
    for scene, caption in claims(1500):
        for relation, other in opposite.items():
            if f" {relation} " in caption:
                num_changed += 1
                assert not caption_is_true(caption.replace(relation, other), scene)
    assert num_changed > 50


@pytest.mark.parametrize(
    "caption",
    [
        "A red circle on a white background.",
        "  a RED circle , a blue ring and a yellow cross on a white background . ",
        "a blue ring and a red circle on a white background",
        "Three shapes on a white background : a red circle , a blue ring and a yellow cross .",
        "Three shapes on a white background:a red circle,a blue ring and a yellow cross",
        "Here is a large red circle in the top left on a white background.",
        "A red circle in the top left and a small yellow cross on a white background.",
        "We see a red circle above a blue ring on a white background.",
        "We see a red circle to the left of a yellow cross on a white background.",
    ],
)
def test_true_in_other_words(caption: str) -> None:
    assert caption_is_true(caption, SCENE)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        ".",
        "a",
        "A cat on a sofa.",
        "A white background.",
        "A red circle on a white background. A red circle.",
        "A red circle and a red circle on a white background.",
        "A red circle and a large red circle on a white background.",
        "We see a red circle above a red circle on a white background.",
        "We see a red circle to the left of a blue ring on a white background.",
        "We see a red circle above a yellow cross on a pink background.",
        "An yellow cross on a white background.",
        "An red circle on a white background.",
        "A small large red circle on a white background.",
        "Two shapes on a white background: a red circle and a blue ring.",
        "Three shapes on a white background: a red circle and a blue ring.",
        "Two shapes on a white background.",
        "The white picture shows a red circle and and a blue ring.",
        "A red circle on a white background on a white background.",
        "A redcircle on a white background.",
        "A red circle, on a white background!",
    ],
)
def test_false_or_outside_the_grammar(caption: str) -> None:
    assert not caption_is_true(caption, SCENE)


@given(st.text(max_size=80))
@settings(max_examples=100, deadline=None)
def test_any_text_is_judged(text: str) -> None:
    assert not caption_is_true(text, SCENE)


def test_each_template_is_used() -> None:
    rng = random.Random(1)
    texts = " ".join(text.lower() for scene in scenes(400) for text in captions_of(scene, rng))
    for template in TEMPLATES:
        start = template.split("{")[0]
        assert start in texts
    assert all(f" {relation} " in texts for relation in RELATIONS)


def test_scene_round_trip_and_order() -> None:
    for scene in scenes(50):
        assert scene_from_json(json.loads(json.dumps(scene_to_json(scene)))) == scene
        assert Scene(scene.background, scene.shapes[::-1]) == scene


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"background": "white"},
        {"background": "white", "shapes": []},
        {"background": "red", "shapes": [vars(SCENE.shapes[0])]},
        {"background": "white", "shapes": [vars(SCENE.shapes[0])] * 2},
        {"background": "white", "shapes": [vars(SCENE.shapes[0]) | {"colour": "mauve"}]},
        {"background": "white", "shapes": [{"shape": "circle"}]},
        {"background": "white", "shapes": [3]},
    ],
)
def test_impossible_scene(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"scene|is no"):
        scene_from_json(value)


def test_shapes_touch_neither_each_other_nor_the_edge() -> None:
    radius = max(radius for radii in RADIUS.values() for radius in radii)
    assert radius < STEP - JITTER
    assert MARGIN - JITTER - radius >= 0
    assert MARGIN + 2 * STEP + JITTER + radius + max(SHADOW) <= SIDE


def test_images_differ_and_show_their_colours() -> None:
    for shape, colour, background in itertools.product(SHAPES, COLOURS, BACKGROUNDS):
        scene = Scene(background, (Shape(shape, colour, "small", "top right"),))
        image, again = (draw_scene(scene, random.Random(seed)) for seed in (1, 2))
        assert image.size == (SIDE, SIDE)
        assert image.mode == "RGB"
        assert image.tobytes() != again.tobytes()
        counts = image.getcolors(SIDE * SIDE)
        assert counts is not None
        top = {nearest(seen) for _, seen in sorted(counts, reverse=True)[:3]}
        assert {colour, background} <= top


def nearest(seen: Any) -> str:
    named = COLOURS | BACKGROUNDS
    return min(named, key=lambda name: math.dist(named[name], seen))


def test_same_seed_same_bytes(data_dir: Path, tmp_path: Path) -> None:
    draw_data_set(tmp_path / "again", 60, seed=7)
    assert digests(tmp_path / "again") == digests(data_dir)
    draw_data_set(tmp_path / "other", 60, seed=8)
    other = digests(tmp_path / "other")
    assert other.keys() == digests(data_dir).keys()
    assert not set(other.values()) & set(digests(data_dir).values())


def test_a_larger_set_holds_the_smaller(data_dir: Path, tmp_path: Path) -> None:
    draw_data_set(tmp_path, 25, seed=7)
    small, large = digests(tmp_path), digests(data_dir)
    assert all(large[path] == digest for path, digest in small.items() if path.endswith(".jpg"))


def test_coco_layout(data_dir: Path) -> None:
    for split, num_images in (("train", 54), ("val", 6)):
        coco = COCO(data_dir / "annotations" / f"captions_{split}2017.json")
        assert len(coco.getImgIds()) == num_images
        assert {path.name for path in (data_dir / f"{split}2017").iterdir()} == {
            image["file_name"] for image in coco.dataset["images"]
        }
        assert set(coco.dataset) == {"info", "licenses", "images", "annotations"}
        for image in coco.dataset["images"]:
            notes = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
            assert len(notes) == 5
            scene = scene_from_json(image["scene"])
            assert all(caption_is_true(note["caption"], scene) for note in notes)
            with Image.open(data_dir / f"{split}2017" / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"])
                assert opened.format == "JPEG"


def test_no_val_scene_in_train(tmp_path: Path) -> None:
    draw_data_set(tmp_path, 600, seed=0)
    train, val = (
        {scene_from_json(image["scene"]) for image in load(tmp_path, split)["images"]}
        for split in ("train", "val")
    )
    assert val
    assert not train & val


def test_progress_sees_each_picture_and_annotations_come_last(tmp_path: Path) -> None:
    seen = []

    def progress(numbers: Iterable[int]) -> Iterable[int]:
        for number in numbers:
            assert not list(tmp_path.glob("annotations/*.json"))
            seen.append(number)
            yield number

    draw_data_set(tmp_path, 2, 0, progress)
    draw_data_set(tmp_path, 2, 0, progress)  # over an old set, which is no longer whole meanwhile
    assert seen == [1, 2, 1, 2]
    assert [len(load(tmp_path, split)["images"]) for split in ("train", "val")] == [1, 1]


@pytest.mark.parametrize("num_images", [1, 0, -3])
def test_too_few_images(num_images: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 or more"):
        draw_data_set(tmp_path, num_images, 0)
    assert not list(tmp_path.iterdir())


def results_for(annotations: dict[str, Any]) -> list[dict[str, Any]]:
    captions = {note["image_id"]: note["caption"] for note in annotations["annotations"]}
    return [{"image_id": key, "caption": caption} for key, caption in captions.items()]


def test_score_truth(data_dir: Path) -> None:
    annotations = load(data_dir, "val")
    results = results_for(annotations)
    assert score_truth(results, annotations) == (6, 6, [])
    results[0]["caption"] = "a dog"
    num_scenes, num_true, mistakes = score_truth(results[:-1], annotations)
    assert (num_scenes, num_true) == (6, 4)
    assert [mistake.caption for mistake in mistakes] == ["a dog", None]


def run_cli(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shards.sample_data", *map(str, args)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_cli(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "annotations" / "captions_val2017.json"
    results = results_for(load(data_dir, "val"))
    results[0]["caption"] = "a dog"
    results_path = tmp_path / "results.json"
    results_path.write_text(json.dumps(results))
    done = run_cli(results_path, path)
    assert done.returncode == 0
    assert not done.stderr
    first, example = done.stdout.splitlines()
    assert first == "Scenes described without a mistake: 5 of 6 (83.3 %)"
    assert '"a dog"' in example
    done = run_cli(results_path, path, "--json")
    assert json.loads(done.stdout) == {"scenes": 6, "true": 5, "share": 0.8333}


@pytest.mark.parametrize(
    "text",
    [
        '[{"image_id": 999, "caption": "a dog"}]',
        '[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]',
        '[{"image_id": 1}]',
        '{"1": "a dog"}',
        "7",
        "no json",
        None,
    ],
)
def test_cli_refuses(text: str | None, data_dir: Path, tmp_path: Path) -> None:
    results_path = tmp_path / "results.json"
    if text is not None:
        results_path.write_text(text)
    done = run_cli(results_path, data_dir / "annotations" / "captions_val2017.json")
    assert done.returncode == 2
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("text", ['{"images": [{"id": 1}], "annotations": []}', "[]", "{}", "null"])
def test_cli_refuses_annotations_without_scenes(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "annotations.json").write_text(text)
    done = run_cli(tmp_path / "results.json", tmp_path / "annotations.json")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
