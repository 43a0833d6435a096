"""Showing samples of a data set: as text, or as a page with images or the facts of features."""

import base64
import html
import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from shards.format.features import FeaturePolicy, feature_policy, unpack_features
from shards.format.index import read_index
from shards.format.manifest import Manifest, read_manifest
from shards.format.names import TOKENIZER
from shards.images import RejectedImageError, decode_rgb
from shards.index_tars import foreign_meta, is_foreign
from shards.messages import counted
from shards.storage import read_range
from shards.tokenizer import UNK, encode_all, load_tokenizer, readable

Sample = tuple[str, bytes, dict[str, Any]]  # key, JPEG or features, the sample's JSON

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }
article { display: flex; gap: 1.5em; border-top: 1px solid #ccc; padding: 1em 0; }
img { flex: 0 0 256px; width: 256px; align-self: start; } h1 { font-size: 1.2em; }
article > div { min-width: 0; }
h2 { font-size: 1em; margin: 0; overflow-wrap: anywhere; } p { margin: .7em 0 0; }
.facts { color: #666; font-weight: normal; }
.word { background: #eef; border-radius: 3px; padding: 0 .25em; margin-right: .15em; }
.word { display: inline-block; }
.word sub { color: #889; font-size: .65em; padding-left: .2em; }
.unknown { background: #fdd; }
"""


def read_samples(folder: Path, limit: int) -> Iterator[Sample]:
    """The first samples of a data set.

    Raises:
        ValueError: the folder is not a finished data set, or a sample is damaged.
        OSError: a tar is missing or shorter than the index says.
    """
    manifest, index = read_manifest(folder), read_index(folder)
    vocabulary, foreign = load_tokenizer(folder / TOKENIZER), is_foreign(manifest)
    for number, shard in enumerate(manifest.shards):
        start, stop = map(int, index.shard_starts[number : number + 2])
        for sample in range(start, min(stop, limit)):
            image, meta = (
                read_range(folder / shard.file, int(offsets[sample]), int(sizes[sample]))
                for offsets, sizes in (
                    (index.image_offset, index.image_size),
                    (index.meta_offset, index.meta_size),
                )
            )
            key = index.key(sample)
            try:
                readable = _readable_meta(foreign, image, meta, vocabulary)
            except (ValueError, RejectedImageError) as error:
                raise ValueError(
                    f"{folder / shard.file}: sample {key} is damaged ({error}); `python -m shards "
                    "verify` lists all damaged samples"
                ) from None
            yield key, image, readable
        if stop >= limit:
            return


def _readable_meta(
    foreign: bool, image: bytes, data: bytes, vocabulary: Tokenizer
) -> dict[str, Any]:
    if not foreign:
        return dict(json.loads(data))
    meta = foreign_meta(data, partial(encode_all, vocabulary))
    height, width = decode_rgb(image).shape[:2]
    return {**meta, "width": width, "height": height, "file_name": "its tar"}


def headline(folder: Path, manifest: Manifest, tokenizer: Tokenizer) -> str:
    """The data set in one line, and in a second one what its features are."""
    policy = feature_policy(manifest.image_policy)
    features = f"\n{_describe(policy)}" if policy else ""
    return (
        f"{folder}: {manifest.name}, {counted(manifest.num_samples, 'image')} with "
        f"{counted(manifest.num_captions, 'caption')} in {counted(len(manifest.shards), 'shard')}, "
        f"vocabulary of {tokenizer.get_vocab_size():,}, digest {manifest.digest[:12]}"
        f"{features}"
    )


def _describe(policy: FeaturePolicy) -> str:
    return (
        f"{policy.description}; weights {policy.weights_sha256[:12]}; encoded from the data set "
        f"{policy.order_digest[:12]}"
    )


def show(folder: Path, limit: int) -> str:
    """The data set and its first samples as text.

    Raises:
        ValueError: the folder is not a finished data set.
        OSError: a tar is missing or shorter than the index says.
    """
    manifest = read_manifest(folder)  # before the tokenizer: it says what is wrong with the folder
    tokenizer = load_tokenizer(folder / TOKENIZER)
    policy = feature_policy(manifest.image_policy)
    samples = (_as_text(sample, tokenizer, policy) for sample in read_samples(folder, limit))
    return "\n\n".join([headline(folder, manifest, tokenizer), *samples])


def show_page(folder: Path, limit: int) -> str:
    """What `show` gives as one HTML page that needs no other file. Raises like `show`."""
    manifest = read_manifest(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    title = html.escape(headline(folder, manifest, tokenizer))
    policy = feature_policy(manifest.image_policy)
    samples = (_as_article(sample, tokenizer, policy) for sample in read_samples(folder, limit))
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{STYLE}</style>\n<h1>{title}</h1>\n" + "\n".join(samples) + "\n</html>\n"
    )


def _facts(image: bytes, meta: dict[str, Any], policy: FeaturePolicy | None) -> str:
    size = f"{len(image) / 1024:.1f} KiB"
    if policy is None:
        return f"{meta['width']}x{meta['height']}, {size}, from {meta['file_name']}"
    views = unpack_features(image, policy).astype(np.float32)  # the mean of float16 would overflow
    shape = " x ".join(map(str, views.shape))
    spread = f"mean {views.mean():.3g}, lowest {views.min():.3g}, highest {views.max():.3g}"
    source = f", from {meta['file_name']}" if "file_name" in meta else ""
    return f"{shape} {policy.dtype}, {spread}, {size}{source}"


def _captions(meta: dict[str, Any]) -> Iterable[tuple[str, list[int]]]:
    return zip(meta["captions"], meta["tokens"], strict=True)


def _as_text(sample: Sample, tokenizer: Tokenizer, policy: FeaturePolicy | None) -> str:
    """One sample as a few lines of text, with UNK for each word that is not in the vocabulary."""
    key, image, meta = sample
    lines = [f"{key}  {_facts(image, meta, policy)}"]
    for caption, tokens in _captions(meta):
        words = [readable(tokenizer, token) for token in tokens]
        lines += [f"  {caption}", f"    {' '.join(words)}", f"    {tokens}"]
    return "\n".join(lines)


def _as_article(sample: Sample, tokenizer: Tokenizer, policy: FeaturePolicy | None) -> str:
    key, image, meta = sample
    source = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    drawn = "" if policy else f'<img alt="{html.escape(key)}" src="{source}">'
    paragraphs = "".join(
        f"<p>{html.escape(caption)}<br>{_word_marks(tokens, tokenizer)}</p>"
        for caption, tokens in _captions(meta)
    )
    return (
        f"<article>{drawn}<div><h2>{html.escape(key)} "
        f'<span class="facts">{html.escape(_facts(image, meta, policy))}</span></h2>{paragraphs}'
        "</div></article>"
    )


def _word_marks(tokens: list[int], tokenizer: Tokenizer) -> str:
    marks = []
    for token in tokens:
        kind = "word unknown" if token == UNK else "word"
        word = html.escape(readable(tokenizer, token))
        marks.append(f'<span class="{kind}">{word}<sub>{token}</sub></span>')
    return "".join(marks)
