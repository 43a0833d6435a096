"""THE shard format: member names, sidecars, index and manifest. Both packages read it from here.

    DIR/
      manifest.json      what the data set is; the digest of its canonical form names the data set
      tokenizer.json     the vocabulary that `tokens` refer to
      index.npz          where each sample lies, so that any one is read with a single pread
      quarantine.jsonl   every record or caption that was left out, and why
      NAME-000000.tar    KEY.jpg + KEY.json, adjacent, plain ustar, uncompressed
      NAME-000000.json   that tar's sidecar: written last, so its presence means the tar is whole

A sample's JSON has image_id, file_name, width, height, captions (raw strings) and tokens (one list
of ids a caption, without begin and end marks).
"""

import hashlib
import json
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.atomic import atomic_file, write_atomic
from shards.storage import local_copy, persistently, read_parsed

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
INDEX = "index.npz"
QUARANTINE = "quarantine.jsonl"

# The image policy of a data set whose tars others made: there is none, and no tokens are stored.
FOREIGN = {"made_by": "others"}

KEY_CHARACTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyz_-")


def key_of(image_id: int | str) -> str:
    """The sample key of an image: a whole number in 12 digits, or an id already of key characters.

    Raises:
        ValueError: the id cannot be a key.
    """
    if isinstance(image_id, int) and not isinstance(image_id, bool) and image_id >= 0:
        return f"{image_id:012d}"
    if isinstance(image_id, str) and image_id and set(image_id) <= KEY_CHARACTERS:
        return image_id
    raise ValueError(f"image id {image_id!r} is neither a whole number nor [0-9a-z_-]+")


def image_id_of(key: str) -> int | str:
    """The image id of a sample key, the inverse of `key_of`.

    The one exception: an id that is a string of the form of a number's key, such as
    "000000000139", comes back as the number, which has the same key.
    """
    return int(key) if key.isdecimal() and key_of(int(key)) == key else key


def shard_file(name: str, number: int) -> str:
    """File name of the tar of shard `number` in the data set `name`."""
    return f"{name}-{number:06d}.tar"


def shard_tars(folder: Path) -> list[Path]:
    """The tars in a folder that are named as `shard_file` names them, sorted by name."""
    pattern = "*-[0-9][0-9][0-9][0-9][0-9][0-9].tar"
    return persistently(folder, lambda: sorted(folder.glob(pattern), key=lambda path: path.name))


def canonical_json(value: Any) -> bytes:
    """The one byte string that stands for `value`: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


# -------------------------------------------------------------------------------------------- tars


@dataclass(frozen=True, slots=True)
class Extent:
    """Where one member's bytes lie in its tar."""

    offset: int  # bytes from the start of the tar to the member's data
    size: int  # bytes
    crc32: int


@dataclass(frozen=True, slots=True)
class Member:
    """One sample of a tar."""

    key: str
    image: Extent
    meta: Extent


def add_to_tar(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append one file, stamped so that equal inputs give equal tars.

    Returns:
        The offset of the data in the tar, in bytes.
    """
    assert tar.fileobj is not None
    header = ustar_header(name, len(data))
    offset = tar.offset + len(header)
    padding = bytes(-len(data) % tarfile.BLOCKSIZE)
    tar.fileobj.write(b"".join((header, data, padding)))
    tar.offset = offset + len(data) + len(padding)
    return offset


def ustar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a file of `size` bytes, as tarfile writes them, in a tenth of its time.

    Source: POSIX.1-2017, pax, "ustar Interchange Format".
    """
    field = name.encode()
    if len(field) > tarfile.LENGTH_NAME:
        return _tarfile_header(name, size)  # a long name is split into prefix and name
    header = bytearray(_NAMELESS)
    header[: len(field)] = field
    header[124:135] = b"%011o" % size
    header[148:156] = b" " * 8  # how the checksum counts itself
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


def _tarfile_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644  # the rest of a fresh TarInfo is zero: mtime, uid, gid
    return info.tobuf(tarfile.USTAR_FORMAT)


_NAMELESS = _tarfile_header("", 0)


def open_tar_for_writing(file: BinaryIO) -> tarfile.TarFile:
    """A plain ustar writer: no pax or GNU extension headers that other readers would trip over."""
    return tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)


# ---------------------------------------------------------------------------------------- sidecars


# What every shard of one build shares.
BUILD_PARTS = ("name", "image_policy", "tokenizer_sha256", "source_sha256")
# What is told of each record or caption that was left out; `caption` is its position, or None.
QUARANTINE_PARTS = ("caption", "detail", "file_name", "image_id", "reason")


@dataclass(frozen=True)
class Sidecar:
    """What one finished shard holds. Written after its tar, so that it vouches for it."""

    shard: str  # file name of the tar
    number: int
    num_shards: int  # of the whole build: any one sidecar tells how many there must be
    build: dict[str, Any]  # BUILD_PARTS: options and source digests
    num_samples: int
    num_captions: int
    num_tokens: int
    num_unk: int
    caption_lengths: tuple[tuple[int, int], ...]  # (tokens, how many captions have so many)
    num_bytes: int
    sha256: str
    members: tuple[Member, ...]
    quarantine: tuple[dict[str, Any], ...]
    num_records: int  # samples plus quarantined records


def sidecar_path(tar_path: Path) -> Path:
    """The sidecar beside a tar."""
    return tar_path.with_suffix(".json")


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    """Write the sidecar of a finished tar in `folder`."""
    # Not asdict(), which would first copy every member, only for the rows below to replace it.
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
        FileNotFoundError: it is not there.
        ValueError: the file is not a sidecar of this format version.
    """
    value = _read_json(path, "a shard's sidecar")
    if value.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: of format version {value.get('format_version')!r}, not {FORMAT_VERSION}; "
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
        canonical_json(value["quarantine"])  # damage may make text that is not UTF-8
        value["build"] = {part: value["build"][part] for part in BUILD_PARTS}
        return Sidecar(**{field.name: value[field.name] for field in fields(Sidecar)})
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: not a whole sidecar ({error!r})") from error


# ------------------------------------------------------------------------------------------- index


@dataclass(frozen=True)
class Index:
    """Where every sample of a data set lies; samples are numbered 0..N-1 in shard order.

    The columns are memory-mapped: opening ten million samples costs no more than opening one.
    """

    shard_starts: np.ndarray  # (S + 1,) int64: shard s holds samples shard_starts[s:s + 2]
    keys: np.ndarray  # (N,) bytes
    image_offset: np.ndarray  # (N,) int64, bytes
    image_size: np.ndarray  # (N,) int64, bytes
    image_crc32: np.ndarray  # (N,) uint32
    meta_offset: np.ndarray  # (N,) int64, bytes
    meta_size: np.ndarray  # (N,) int64, bytes
    meta_crc32: np.ndarray  # (N,) uint32

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, sample: int) -> str:
        """Key of a sample number."""
        return bytes(self.keys[sample]).decode()


# The type of each column; that of the keys is as wide as the longest key.
INDEX_TYPES = {
    "shard_starts": "<i8",
    "keys": "S",
    "image_offset": "<i8",
    "image_size": "<i8",
    "image_crc32": "<u4",
    "meta_offset": "<i8",
    "meta_size": "<i8",
    "meta_crc32": "<u4",
}


def index_columns(members: Sequence[Member]) -> dict[str, np.ndarray]:
    """One shard's part of the index, all its columns but `shard_starts`."""
    columns: dict[str, list[Any]] = {"keys": [m.key.encode() for m in members]}
    for part in ("image", "meta"):
        for column in ("offset", "size", "crc32"):
            columns[f"{part}_{column}"] = [getattr(getattr(m, part), column) for m in members]
    return {name: np.array(values, INDEX_TYPES[name]) for name, values in columns.items()}


def write_index(folder: Path, shards: Sequence[dict[str, np.ndarray]]) -> None:
    """Write index.npz of each shard's `index_columns`, in shard order."""
    starts = np.array([0, *accumulate(len(shard["keys"]) for shard in shards)], "<i8")
    arrays = {"shard_starts": starts}
    for name in INDEX_TYPES:
        if name != "shard_starts":
            arrays[name] = np.concatenate([shard[name] for shard in shards])
    with atomic_file(folder / INDEX) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # stored, not compressed: can be mapped


def read_index(folder: Path) -> Index:
    """Open the index of a shard folder.

    Raises:
        ValueError: the index is missing or not whole.
    """
    path = folder / INDEX
    try:
        with local_copy(path) as local:  # what is mapped stays readable when its copy is removed
            index = Index(**_map_npz(local))
        _check_columns(index)
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: no {INDEX} (is it a shard folder, and was its build finished?)"
        ) from None
    except Exception as error:  # zipfile and NumPy raise a dozen kinds on damaged headers
        raise ValueError(f"{path}: damaged index ({error}); rebuild it with finalize") from error
    return index


def _check_columns(index: Index) -> None:
    for name, dtype in INDEX_TYPES.items():
        column = getattr(index, name)
        length = len(column) if name == "shard_starts" else len(index)
        if not np.issubdtype(column.dtype, np.dtype(dtype).type) or column.shape != (length,):
            raise ValueError(f"{name} is {column.dtype} of shape {column.shape}")


def _map_npz(path: Path) -> dict[str, np.ndarray]:
    """Memory-map each array of an uncompressed npz, which `np.load` cannot."""
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed")
            with archive.open(entry) as array_file:
                version = np.lib.format.read_magic(array_file)
                read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                shape, _, dtype = read_header(array_file)
                header_size = array_file.tell()
            file.seek(entry.header_offset + 26)  # the local header's name and extra lengths
            name_size, extra_size = np.frombuffer(file.read(4), dtype="<u2")
            offset = entry.header_offset + 30 + int(name_size) + int(extra_size) + header_size
            name = entry.filename.removesuffix(".npy")
            if shape == (0,):  # an empty file cannot be mapped
                arrays[name] = np.empty(shape, dtype)
            else:
                mapped = np.memmap(path, dtype, mode="r", offset=offset, shape=shape)
                arrays[name] = np.asarray(mapped)  # the class itself is slow to take a number from
    return arrays


# ---------------------------------------------------------------------------------------- manifest


@dataclass(frozen=True)
class ShardEntry:
    """A tar as the manifest lists it."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a data set is."""

    name: str
    num_samples: int
    num_captions: int
    num_tokens: int
    num_unk: int
    num_quarantined: int  # records and captions left out
    image_policy: dict[str, Any]
    tokenizer_sha256: str
    source_sha256: str
    index_sha256: str
    shards: tuple[ShardEntry, ...]

    @property
    def digest(self) -> str:
        """Names the data set in checkpoints and logs: sha256 of the canonical manifest."""
        return digest_of(_manifest_value(self))


def _manifest_value(manifest: Manifest) -> dict[str, Any]:
    return {"format": "capstream", "format_version": FORMAT_VERSION, **asdict(manifest)}


def check_index(folder: Path, manifest: Manifest) -> None:
    """See that the index is that of the manifest, byte for byte.

    Raises:
        ValueError: it is not.
    """
    path = folder / INDEX
    with local_copy(path) as local, open(local, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.index_sha256:
            raise ValueError(
                f"{path}: damaged, or of another build than {MANIFEST}; `python -m shards verify` "
                "tells, and finalize, or index for tars of others, makes it anew"
            )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest: the last file of a build, so that its presence means a whole data set."""
    text = json.dumps(_manifest_value(manifest), indent=2, sort_keys=True, ensure_ascii=False)
    write_atomic(folder / MANIFEST, text.encode() + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a shard folder.

    Raises:
        ValueError: the folder is missing, is no shard folder, or is of another format version.
    """
    path = folder / MANIFEST
    try:  # at once: a web server has files, but may know no folders
        value = _read_json(path, "a manifest")
    except FileNotFoundError:
        if not persistently(folder, folder.is_dir):
            raise ValueError(f"{folder}: no such folder of shards") from None
        raise ValueError(
            f"{folder}: no {MANIFEST}, so no finished data set; run `python -m shards build` on it"
        ) from None
    if value.pop("format", None) != "capstream" or value.pop("format_version", 0) != FORMAT_VERSION:
        raise ValueError(f"{path}: not a manifest of format version {FORMAT_VERSION}")
    try:
        value["shards"] = tuple(ShardEntry(**entry) for entry in value["shards"])
        _check_shard_names([shard.file for shard in value["shards"]])
        manifest = Manifest(**value)
        for field in fields(Manifest):
            if field.type is int and type(value[field.name]) is not int:
                raise TypeError(f"{field.name} is no number")
        return manifest
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a whole manifest ({error})") from error


def _check_shard_names(names: Sequence[str]) -> None:
    """A manifest may come from anyone: its names must stay in their folder, wherever that is.

    Raises:
        ValueError: names the one that does not.
    """
    for name in names:
        if Path(name).name != name or not name.endswith(".tar"):
            raise ValueError(f"{name!r} is no file name of a tar")
    if len(set(names)) < len(names):
        raise ValueError("a tar is listed twice")


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        value = read_parsed(path, json.loads)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path}: not there") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as {what} ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not {what}")
    return value
