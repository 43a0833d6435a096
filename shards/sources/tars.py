"""Reading WebDataset tars made by others: images with caption files beside them."""

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from shards.format.names import image_id_of
from shards.images import RejectedImageError
from shards.retry import persistently
from shards.sources.caption_member import read_captions
from shards.sources.record import Record, TarSpan, name_key
from shards.storage import local_copy

# The formats from gif on are not packed: their samples are rejected by name.
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "jxl", "ppm")
CAPTIONS = ("txt", "json")  # one caption, or an object with `captions` or `caption`
MAX_CAPTION_BYTES = 1 << 20

Parts = dict[str, tarfile.TarInfo]


def read_tars(folder: Path) -> list[Record]:
    """The samples of every tar in a folder: tars by name, samples in their order.

    Keys that occur in several tars get the names of their tars. A sample that cannot be used is a
    record with a fault.

    Raises:
        ValueError: there is no tar or no sample, some tars would be overlooked, or a tar is damaged
            or has a member twice.
    """
    records = [record for path in list_tars(folder) for record in _read_tar(path)]
    if not records:
        raise ValueError(f"{folder}: neither images nor captions in its tars")
    counts = Counter(record.key for record in records)
    records = [record if counts[record.key] == 1 else _with_long_key(record) for record in records]
    [(key, most)] = Counter(record.key for record in records).most_common(1)
    if most > 1:  # hard links to one file, in tars with the same keys
        names = ", ".join(record.file_name for record in records if record.key == key)
        raise ValueError(
            f"{folder}: several samples have one name ({names}); rename their keys in one tar"
        )
    return records


def unreadable_tars(folder: Path) -> Iterator[str]:
    """Each tar of a folder that cannot be read, and why."""
    for path in list_tars(folder):
        try:
            _read_tar(path)
        except ValueError as error:
            yield str(error)


def list_tars(folder: Path) -> list[Path]:
    """The tars of a folder, sorted by name.

    Raises:
        ValueError: there is none, or some would be overlooked.
    """
    if not persistently(folder, folder.is_dir):
        wrong = "is a file, not a folder" if folder.exists() else "no such folder of tars"
        raise ValueError(f"{folder}: {wrong}")
    paths = _list(folder, "*.tar")
    for pattern in ("*.tar.*", "*.tgz", "*/*.tar"):
        if overlooked := _list(folder, pattern):
            raise ValueError(
                f"{overlooked[0]}: would be overlooked; put uncompressed tars directly into "
                f"{folder}"
            )
    if not paths:
        raise ValueError(f"{folder}: holds no .tar file")
    return paths


def _with_long_key(record: Record) -> Record:
    return replace(record, image_id=image_id_of(name_key(record.file_name, plain=False)))


def _list(folder: Path, pattern: str) -> list[Path]:
    return persistently(folder, lambda: sorted(folder.glob(pattern), key=lambda path: path.name))


def _read_tar(path: Path) -> list[Record]:
    with local_copy(path) as local:
        try:
            with tarfile.open(local, "r:", encoding="utf-8") as tar:
                samples = _samples(path, tar)
                _check_end(path, local, tar)
                found = (_record(path, tar, key, parts) for key, parts in samples.items())
                return [record for record in found if record is not None]
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{path}: damaged or incomplete tar ({error})") from error


def _samples(path: Path, tar: tarfile.TarFile) -> dict[str, Parts]:
    """The members of each sample, by key and part. A hard link stands for the file it links to.

    Symbolic links and devices are kept where they have the name of an image or caption, so that
    they can be rejected by name.
    """
    samples: dict[str, Parts] = {}
    files: Parts = {}
    for member in tar:
        found = files.get(member.linkname, member) if member.islnk() else member
        key, part = _split_name(member.name)
        if found.isdir() or _is_apple_double(member.name):
            continue
        if found.isreg():
            files[member.name] = found
        elif part.rpartition(".")[2] not in (*IMAGES, *CAPTIONS):
            continue
        if found.issparse():  # its bytes are not in one piece
            raise ValueError(f"{path}: {member.name} is stored sparse; make the tar without -S")
        if part in samples.setdefault(key, {}):
            raise ValueError(f"{path}: {member.name} occurs more than once")
        samples[key][part] = found
    return samples


def _check_end(path: Path, local: Path, tar: tarfile.TarFile) -> None:
    """Check that nothing but zeros follows the last member.

    tarfile takes a damaged header, a cut between members or a second, appended tar for the end.
    """
    with open(local, "rb") as file:
        file.seek(tar.offset)
        if len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise ValueError(f"{path}: incomplete tar (it has no end mark)")
        file.seek(tar.offset)
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise ValueError(
                    f"{path}: damaged at byte {tar.offset:,}: data that belongs to no member"
                )


def _split_name(name: str) -> tuple[str, str]:
    """Split `folder/KEY.part` into `folder/KEY` and `part` at the first dot, as webdataset does.

    Leading dots in a file name are kept as part of the sample key: otherwise all such files would
    belong to one sample.
    """
    folder, slash, file = name.rpartition("/")
    leading = len(file) - len(file.lstrip("."))
    key, _, part = file[leading:].partition(".")
    if leading and not part:  # `.jpg`
        key, part, leading = "", key, leading - 1
    return folder + slash + "." * leading + key, part.lower()


def _is_apple_double(name: str) -> bool:
    """Whether a member holds the attributes that macOS's tar adds to a file, as `._NAME`."""
    return name.rpartition("/")[2].startswith("._")


def _find(parts: Parts, wanted: Sequence[str]) -> str | None:
    """The part with one of these extensions. `jpg` is preferred to `v2.jpg`."""
    plain = [part for part in wanted if part in parts]
    behind = sorted(part for part in parts if part.rpartition(".")[2] in wanted)
    return next(iter([*plain, *behind]), None)


def _record(path: Path, tar: tarfile.TarFile, key: str, parts: Parts) -> Record | None:
    """One sample, or None if its members are neither images nor captions."""
    image, caption = _find(parts, IMAGES), _find(parts, CAPTIONS)
    if image is None and caption is None:
        return None
    captions: tuple[str, ...] = ()
    caption_span = fault = None
    if caption is not None:
        member = parts[caption]
        try:
            captions = _captions(path, tar, member, caption)
            caption_span = TarSpan(path.name, member.offset_data, member.size)
        except RejectedImageError as error:
            fault = error.reason, error.detail
    if image is None:  # the sample is rejected, so nothing is read at this span
        name, span = f"{path.name}/{key}", TarSpan(path.name, 0, 0)
        fault = fault or ("no image", f"a .{caption} without an image")
    else:
        member = parts[image]
        name = f"{path.name}/{member.name}"
        span = TarSpan(path.name, member.offset_data, member.size)
        if not member.isreg():
            fault = _no_file(member)
    return Record(image_id_of(name_key(key)), name, captions, span, caption_span, fault)


def _captions(
    path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, part: str
) -> tuple[str, ...]:
    """The captions in a member.

    Raises:
        RejectedImageError: they cannot be read: only this sample is rejected.
        ValueError: the tar ends before the member does.
    """
    if not member.isreg():
        raise RejectedImageError(*_no_file(member))
    if member.size > MAX_CAPTION_BYTES:
        raise RejectedImageError("unreadable captions", f"{member.name}: {member.size:,} bytes")
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise ValueError(f"{path}: {member.name}: the tar ends before this member does")
    try:
        return read_captions(data, part.rpartition(".")[2] == "txt")
    except ValueError as error:
        raise RejectedImageError("unreadable captions", f"{member.name}: {error}") from None


def _no_file(member: tarfile.TarInfo) -> tuple[str, str]:
    return "no file in the tar", f"{member.name} is a link to a file outside the tar, or a device"
