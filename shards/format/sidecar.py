"""The sidecar of a shard: the contents of its finished tar. It is written after the tar."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shards.atomic import write_atomic
from shards.format.names import FORMAT_VERSION
from shards.format.stored_json import canonical_json, read_json
from shards.format.tar import Extent, Member

# The keys of `Sidecar.build`, which all shards of one build share.
BUILD_PARTS = ("name", "image_policy", "tokenizer_sha256", "source_sha256")
# The keys of a quarantine entry. `caption` is the position of the rejected caption in its record,
# or None where the whole record was rejected.
QUARANTINE_PARTS = ("caption", "detail", "file_name", "image_id", "reason")


@dataclass(frozen=True)
class Sidecar:
    """The contents of one finished shard. A shard without a sidecar is not finished."""

    shard: str  # file name of the tar
    number: int
    num_shards: int  # of the whole build, so that any one sidecar tells how many there must be
    build: dict[str, Any]  # options and source digests, see BUILD_PARTS
    num_samples: int
    num_captions: int
    num_tokens: int
    num_unk: int
    caption_lengths: tuple[tuple[int, int], ...]  # (number of tokens, number of captions)
    num_bytes: int
    sha256: str
    members: tuple[Member, ...]
    quarantine: tuple[dict[str, Any], ...]
    num_records: int  # samples and rejected records


def sidecar_path(tar_path: Path) -> Path:
    """The path of the sidecar that belongs to a tar."""
    return tar_path.with_suffix(".json")


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    """Write the sidecar of a finished tar in `folder`."""
    # Not asdict(): it would copy every member, and the rows below replace them anyway.
    value = {field.name: getattr(sidecar, field.name) for field in fields(Sidecar)}
    value["format_version"] = FORMAT_VERSION
    value["members"] = [
        [m.key, *(getattr(e, f) for e in (m.image, m.meta) for f in ("offset", "size", "crc32"))]
        for m in sidecar.members
    ]
    write_atomic(sidecar_path(folder / sidecar.shard), canonical_json(value) + b"\n")


def read_sidecar(path: Path) -> Sidecar:
    """Read one sidecar.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a sidecar of this format version.
    """
    value = read_json(path, "a shard's sidecar")
    if value.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: has format version {value.get('format_version')!r}, not {FORMAT_VERSION}; "
            "build into a new folder, or remove this file and its tar and build again"
        )
    try:
        value["members"] = tuple(
            Member(str(row[0]), Extent(*row[1:4]), Extent(*row[4:7])) for row in value["members"]
        )
        value["caption_lengths"] = tuple((int(n), int(m)) for n, m in value["caption_lengths"])
        value["quarantine"] = tuple(
            {part: entry[part] for part in QUARANTINE_PARTS} for entry in value["quarantine"]
        )
        canonical_json(value["quarantine"])  # raises where damage made text that is not UTF-8
        value["build"] = {part: value["build"][part] for part in BUILD_PARTS}
        return Sidecar(**{field.name: value[field.name] for field in fields(Sidecar)})
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: damaged or incomplete sidecar ({error!r})") from error
