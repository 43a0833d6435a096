"""1,000 spoilt annotation files: each is read, or refused with the place of the fault."""

import json
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.shards import Scenes

from shards.build import build_shard
from shards.finalize import finalize
from shards.images import ImagePolicy
from shards.jobs import plan_jobs
from shards.sources.read import Source, read_source
from shards.verify import verify

NUM_FILES = 1_000
SLOWEST_S = 2.0

NAMES = ("000000000001.jpg", "000000000002.jpg", "000000000003.jpg")
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**63, 10**80, 1.5, float("inf"), float("nan"), "", " ", "a\0b", "\ud83d",
    "../../etc/passwd", "/etc/passwd", "..", ".", "x" * 5000, "\u202eabc", "e\u0301" * 40, [], {},
    [[]], {"a": 1}, ["a", "b"], "train", "NaN",
)  # fmt: skip

# A file that is refused names the entry, the line, or what is missing at the top.
PLACE = re.compile(r"\w+\[\d+\]|line \d+|no list `|not a JSON object|lists no image|no column"
                   r"|--split|more than once|image id|more than one column")  # fmt: skip


def coco() -> dict[str, Any]:
    images = [{"id": n, "file_name": name} for n, name in enumerate(NAMES, start=1)]
    annotations = [
        {"id": 10 * n + k, "image_id": n, "caption": f"a red circle {k}."}
        for n in (1, 2, 3)
        for k in (0, 1)
    ]
    return {"info": {}, "images": images, "annotations": annotations}


def karpathy() -> dict[str, Any]:
    return {
        "images": [
            {"filename": name, "imgid": n, "split": "train", "sentences": [{"raw": "a red ring"}]}
            for n, name in enumerate(NAMES)
        ]
    }


def table() -> str:
    return "image,caption\n" + "".join(f'{name},"a red, large circle"\n' for name in NAMES)


def json_lines() -> str:
    return "".join(json.dumps({"image": name, "caption": ["a ring"]}) + "\n" for name in NAMES)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place inside a JSON value."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(part, (*path, key))
    return found


def spoil_value(rng: random.Random, value: Any) -> str:
    """Replace, remove or repeat one entry somewhere."""
    for _ in range(rng.choice((1, 1, 2))):
        *where, last = rng.choice(places(value))
        target = value
        for key in where:
            target = target[key]
        what = rng.randrange(3)
        if what == 0 or isinstance(target, dict):
            target[last] = rng.choice(ODD_VALUES)
        elif what == 1:
            del target[last]
        else:
            target.append(target[last])
    return json.dumps(value)


def spoil_text(rng: random.Random, data: bytes) -> bytes:
    """Cut it off, flip bits, or put a piece of something else in."""
    position = rng.randrange(len(data))
    what = rng.randrange(4)
    if what == 0:
        return data[:position]
    if what == 1:
        spoilt = bytearray(data)
        spoilt[position] ^= 1 << rng.randrange(8)
        return bytes(spoilt)
    pieces = (b"\0", b'"', b"\n", b",", b"[" * 100_000, b"\xff\xfe", b"9" * 6000, b"\xef\xbb\xbf")
    piece = rng.choice(pieces)
    return data[:position] + piece + data[position + what - 2 :]


def spoilt_file(rng: random.Random, folder: Path) -> Path:
    kind = rng.randrange(4)
    if kind in (0, 1):
        value = (coco, karpathy)[kind]()
        path = folder / "captions.json"
        whole = spoil_value(rng, value) if rng.random() < 0.6 else json.dumps(value)
    else:
        path = folder / ("captions.csv", "captions.jsonl")[kind - 2]
        whole = (table, json_lines)[kind - 2]()
    data = whole.encode()
    if kind > 1 or rng.random() < 0.4:
        data = spoil_text(rng, data)
    path.write_bytes(data)
    return path


@pytest.fixture
def images(scenes: Scenes, tmp_path: Path) -> Path:
    """A folder of three images; beside it lies one that must not be reached."""
    folder = tmp_path / "images"
    folder.mkdir()
    drawn = sorted((scenes.data / "train2017").iterdir())
    for name, image in zip(NAMES, drawn, strict=False):
        (folder / name).write_bytes(image.read_bytes())
    (tmp_path / "secret.jpg").write_bytes(drawn[5].read_bytes())
    return folder


def test_each_spoilt_annotation_file_is_read_or_refused(
    scenes: Scenes, images: Path, tmp_path: Path
) -> None:
    rng = random.Random(0)
    ended: Counter[str] = Counter()
    for number in range(NUM_FILES):
        path = spoilt_file(rng, tmp_path)
        out = tmp_path / f"out-{number}"
        started = time.monotonic()
        refusal = build(path, images, out, scenes.tokenizer)
        ended["refused" if refusal else "built"] += 1
        if refusal:
            assert str(path) in refusal or "image id" in refusal
            assert PLACE.search(refusal), refusal
        assert time.monotonic() - started < SLOWEST_S, path.read_bytes()[:300]
    assert min(ended["refused"], ended["built"]) > NUM_FILES // 10, ended


def build(path: Path, images: Path, out: Path, tokenizer: Path) -> str:
    """Build what a file lists and verify it; what was said where the file is refused."""
    splits = ("train",) if path.suffix == ".json" and b"imgid" in path.read_bytes() else ()
    policy = ImagePolicy(resize_short=48, quality=90)
    try:
        records = read_source(Source((path,), splits=splits))
        jobs = plan_jobs(records, images, out, tokenizer, "train", policy, 10)
    except ValueError as error:
        return str(error)
    out.mkdir()
    for job in jobs:
        build_shard(job, lambda position: None)
    manifest, _ = finalize(out, tokenizer, max_rejected=1, max_unk=1)
    assert manifest.num_samples + len(whole_records(out)) == len(records)
    assert [fault for _, faults in verify(out) for fault in faults] == []
    return ""


def whole_records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "quarantine.jsonl").read_bytes().splitlines()
    return [line for line in map(json.loads, lines) if line["caption"] is None]
