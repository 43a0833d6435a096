"""The manifest: the description of a data set. Its digest names the data set."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from shards.atomic import write_atomic
from shards.format.names import FORMAT_VERSION, INDEX, MANIFEST
from shards.format.stored_json import digest_of, read_json
from shards.retry import persistently
from shards.storage import local_copy

# Stands for the image policy in data sets whose tars other software made: their images were not
# packed by this package, and no tokens are stored.
FOREIGN = {"made_by": "others"}


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest lists it."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The description of a data set."""

    name: str
    num_samples: int
    num_captions: int
    num_tokens: int
    num_unk: int
    num_quarantined: int  # rejected records and captions
    image_policy: dict[str, Any]
    tokenizer_sha256: str
    source_sha256: str
    index_sha256: str
    shards: tuple[ShardEntry, ...]

    @property
    def digest(self) -> str:
        """sha256 of the canonical manifest: names the data set in checkpoints and logs."""
        return digest_of(_manifest_value(self))

    @property
    def order_digest(self) -> str:
        """The digest that determines the sample order.

        Features of a data set are read in the order of that data set.
        """
        return str(self.image_policy.get("order_digest") or self.digest)


def _manifest_value(manifest: Manifest) -> dict[str, Any]:
    return {"format": "capstream", "format_version": FORMAT_VERSION, **asdict(manifest)}


def check_index(folder: Path, manifest: Manifest) -> None:
    """Check that the index is the one that the manifest names, byte for byte.

    Raises:
        ValueError: it is not.
    """
    path = folder / INDEX
    with local_copy(path) as local, open(local, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.index_sha256:
            raise ValueError(
                f"{path}: damaged, or of another build than {MANIFEST}; `python -m shards verify` "
                "finds out which, and `finalize`, or `index` for tars made by others, writes both "
                "again"
            )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest. It is the last file of a build: with it, the data set is complete."""
    text = json.dumps(_manifest_value(manifest), indent=2, sort_keys=True, ensure_ascii=False)
    write_atomic(folder / MANIFEST, text.encode() + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a shard folder.

    Raises:
        ValueError: the folder is missing or not a shard folder, or has another format version.
    """
    path = folder / MANIFEST
    try:  # without looking for the folder first: a web server may know files only
        value = read_json(path, "a manifest")
    except FileNotFoundError:
        if not persistently(folder, folder.is_dir):
            raise ValueError(f"{folder}: no such shard folder") from None
        raise ValueError(
            f"{folder}: has no {MANIFEST}, so it is not a finished data set; run the command "
            "that makes it again (`python -m shards build` or `python -m pipeline.features`), or "
            "`python -m shards finalize` if all shards are packed"
        ) from None
    if value.pop("format", None) != "capstream" or value.pop("format_version", 0) != FORMAT_VERSION:
        raise ValueError(f"{path}: not a manifest of format version {FORMAT_VERSION}")
    try:
        value["shards"] = tuple(ShardEntry(**entry) for entry in value["shards"])
        _check_shard_names([shard.file for shard in value["shards"]])
        manifest = Manifest(**value)
        for field in fields(Manifest):
            if field.type is int and type(value[field.name]) is not int:
                raise TypeError(f"{field.name} is not a number")
        return manifest
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged or incomplete manifest ({error})") from error


def _check_shard_names(names: Sequence[str]) -> None:
    """Check names that may come from an untrusted manifest: they must not leave the folder.

    Raises:
        ValueError: a name is not a plain file name of a tar, or is listed twice.
    """
    for name in names:
        if Path(name).name != name or not name.endswith(".tar"):
            raise ValueError(f"{name!r} is not the file name of a tar")
    if len(set(names)) < len(names):
        raise ValueError("a tar is listed twice")
