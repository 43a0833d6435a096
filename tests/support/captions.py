"""Real captions in COCO's layout, where there are any beside the checkout."""

import json
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
COCO = DATA / "coco-captions" / "captions_val2017.json"
FLICKR8K = [DATA / "flickr8k" / "annotations" / f"captions_{s}.json" for s in ("train", "val")]

References = dict[int, list[str]]


def read_captions(path: Path) -> References:
    """image id -> its captions, from a file in COCO's layout; skips the test where it is absent."""
    if not path.exists():
        pytest.skip(f"no data at {path}")
    captions: References = {}
    for annotation in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return captions
