"""Print samples of a data set, as a person wants to see them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shards.format import TOKENIZER, read_index, read_manifest
from shards.tokenizer import load_tokenizer


def read_samples(folder: Path, limit: int) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """The first samples of a data set: key, JPEG bytes, and the sample's JSON.

    Raises:
        ValueError: there is no finished data set.
    """
    manifest, index = read_manifest(folder), read_index(folder)
    for number, shard in enumerate(manifest.shards):
        with open(folder / shard.file, "rb") as file:
            start, stop = map(int, index.shard_starts[number : number + 2])
            for sample in range(start, min(stop, limit)):
                image, meta = (
                    os.pread(file.fileno(), int(sizes[sample]), int(offsets[sample]))
                    for offsets, sizes in (
                        (index.image_offset, index.image_size),
                        (index.meta_offset, index.meta_size),
                    )
                )
                yield index.key(sample), image, json.loads(meta)


def describe_sample(key: str, image: bytes, meta: dict[str, Any], tokenizer: Tokenizer) -> str:
    """One sample as a few lines of text: UNK stands where the vocabulary lacks a word."""
    lines = [
        f"{key}  {meta['width']}x{meta['height']}, {len(image) / 1024:.1f} KiB, "
        f"from {meta['file_name']}"
    ]
    for caption, tokens in zip(meta["captions"], meta["tokens"], strict=True):
        words = [str(tokenizer.id_to_token(token)) for token in tokens]
        lines += [f"  {caption}", f"    {' '.join(words)}", f"    {tokens}"]
    return "\n".join(lines)


def show(folder: Path, limit: int) -> str:
    """Describe the data set and its first samples."""
    manifest = read_manifest(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    head = (
        f"{folder}: {manifest.name}, {manifest.num_samples:,} images with "
        f"{manifest.num_captions:,} captions in {len(manifest.shards)} shards, "
        f"{tokenizer.get_vocab_size():,} words, digest {manifest.digest[:12]}"
    )
    samples = read_samples(folder, limit)
    return "\n\n".join([head, *(describe_sample(*sample, tokenizer) for sample in samples)])
