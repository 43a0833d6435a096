"""Karpathy's splits: dataset_coco.json, dataset_flickr8k.json, dataset_flickr30k.json.

Source: Karpathy and Fei-Fei, Deep visual-semantic alignments, arXiv:1412.2306.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from shards.sources.annotation_json import entries_of, field_of
from shards.sources.record import Record


def is_karpathy(dataset: dict[str, Any]) -> bool:
    """Whether a parsed annotation file is one of Karpathy's: its images have `sentences`."""
    images = dataset.get("images")
    first = images[0] if isinstance(images, list) and images else None
    return isinstance(first, dict) and "sentences" in first


def read_karpathy(path: Path, dataset: dict[str, Any], splits: Collection[str]) -> list[Record]:
    """The images of some splits, in the order of the file.

    The id of an image is its `cocoid` where it has one, else its `imgid`.

    Args:
        path: names the file in errors.
        dataset: its parsed contents.
        splits: the names of the wanted splits, such as train and restval.
    Raises:
        ValueError: an entry is malformed, no split is named, or there is no such split.
    """
    images = entries_of(path, dataset, "images")
    counts = Counter(
        field_of(path, f"images[{n}]", image, "split", str) for n, image in enumerate(images)
    )
    listed = ", ".join(f"{split} ({count:,})" for split, count in counts.most_common())
    if not splits:
        raise ValueError(f"{path}: name the wanted splits with --split; it has {listed}")
    unknown = sorted(set(splits) - set(counts))
    if unknown:
        raise ValueError(f"{path}: no split {', '.join(unknown)}; it has {listed}")
    return [
        record_of(path, f"images[{number}]", image)
        for number, image in enumerate(images)
        if image["split"] in splits
    ]


def record_of(path: Path, where: str, image: dict[str, Any]) -> Record:
    """The record of one entry of `images`.

    Args:
        where: names the entry in errors, such as "images[3]".
    Raises:
        ValueError: the entry is malformed.
    """
    id_field = "cocoid" if "cocoid" in image else "imgid"
    name = field_of(path, where, image, "filename", str)
    if "filepath" in image:  # of the COCO file: train2014 or val2014
        name = f"{field_of(path, where, image, 'filepath', str)}/{name}"
    sentences = entries_of(path, image, "sentences")
    captions = tuple(
        field_of(path, f"{where}.sentences[{number}]", sentence, "raw", str)
        for number, sentence in enumerate(sentences)
    )
    return Record(field_of(path, where, image, id_field, int), name, captions)
