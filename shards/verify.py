"""Read a finished data set again, every byte, and name each thing that is not as recorded."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from shards.finalize import read_sidecars
from shards.format import INDEX, TOKENIZER, Extent, Index, Sidecar, read_index, read_manifest
from shards.images import BadImageError, decode_rgb
from shards.tokenizer import encode, load_tokenizer, tokenizer_sha256


def verify(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Check manifest, index, sidecars, tars, pictures and tokens against each other.

    Yields:
        After each part of the work the number of samples checked in it, and its faults: one line
        each, naming the file and the sample.
    Raises:
        ValueError: there is no finished data set to check.
    """
    manifest = read_manifest(folder)
    index = read_index(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    sidecars = read_sidecars(folder)
    faults = []
    if hashlib.sha256((folder / INDEX).read_bytes()).hexdigest() != manifest.index_sha256:
        faults.append(f"{INDEX}: sha256 differs from the manifest's")
    if tokenizer_sha256(folder / TOKENIZER) != manifest.tokenizer_sha256:
        faults.append(f"{TOKENIZER}: sha256 differs from the manifest's")
    if [s.sha256 for s in sidecars] != [s.sha256 for s in manifest.shards]:
        faults.append("manifest.json: lists other shards than the sidecars do")
    for part in ("num_samples", "num_captions", "num_tokens", "num_unk"):
        if sum(getattr(s, part) for s in sidecars) != getattr(manifest, part):
            faults.append(f"manifest.json: {part} is not the sum over the sidecars")
    if len(index) != manifest.num_samples:
        faults.append(f"{INDEX}: {len(index)} samples, the manifest says {manifest.num_samples}")
    yield 0, faults
    for sidecar in sidecars:
        yield sidecar.num_samples, list(_shard_faults(folder, sidecar, index, tokenizer))


def _shard_faults(
    folder: Path, sidecar: Sidecar, index: Index, tokenizer: Tokenizer
) -> Iterator[str]:
    path = folder / sidecar.shard
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sidecar.sha256:
            yield f"{path.name}: sha256 differs from its sidecar's"
        names = [name for m in sidecar.members for name in (f"{m.key}.jpg", f"{m.key}.json")]
        try:
            with tarfile.open(path) as tar:
                if tar.getnames() != names:
                    yield f"{path.name}: its members are not those of its sidecar"
        except tarfile.TarError as error:
            yield f"{path.name}: not a readable tar ({error})"
        first = int(index.shard_starts[sidecar.number])
        for position, member in enumerate(sidecar.members):
            where = f"{path.name}: {member.key}"
            if _index_row(index, first + position) != (member.key, member.image, member.meta):
                yield f"{where}: {INDEX} says otherwise than the sidecar"
            for part, extent in (("jpg", member.image), ("json", member.meta)):
                data = os.pread(file.fileno(), extent.size, extent.offset)
                if zlib.crc32(data) != extent.crc32:
                    yield f"{where}.{part}: crc32 differs"
                elif part == "jpg":
                    yield from _image_faults(where, data)
                else:
                    yield from _meta_faults(where, data, tokenizer)


def _index_row(index: Index, sample: int) -> tuple[str, Extent, Extent] | None:
    if sample >= len(index):
        return None
    image = (index.image_offset[sample], index.image_size[sample], index.image_crc32[sample])
    meta = (index.meta_offset[sample], index.meta_size[sample], index.meta_crc32[sample])
    return index.key(sample), Extent(*map(int, image)), Extent(*map(int, meta))


def _image_faults(where: str, data: bytes) -> Iterator[str]:
    try:
        decode_rgb(data)
    except BadImageError as error:
        yield f"{where}.jpg: {error}"


def _meta_faults(where: str, data: bytes, tokenizer: Tokenizer) -> Iterator[str]:
    meta = json.loads(data)  # its crc32 was right, so it is what the builder wrote
    if [encode(tokenizer, caption) for caption in meta["captions"]] != meta["tokens"]:
        yield f"{where}.json: the captions do not give the stored tokens"
