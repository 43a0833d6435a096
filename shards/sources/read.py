"""Reading a source of any form: the form shows in the file name and the contents."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from shards.sources.annotation_json import read_object
from shards.sources.coco import read_coco
from shards.sources.karpathy import is_karpathy, read_karpathy
from shards.sources.record import Record, relative_to
from shards.sources.table import is_table, read_table
from shards.sources.tars import read_tars


@dataclass(frozen=True)
class Source:
    """Where the captions of a data set are, and which of them are wanted."""

    annotations: tuple[Path, ...] = ()  # caption files
    webdataset: Path | None = None  # a folder of tars with captions in them
    splits: tuple[str, ...] = ()  # of Karpathy's files
    image_column: str = "image"  # of tables
    caption_columns: tuple[str, ...] = ("caption",)
    images_dir: Path | None = None  # absolute file names inside it are made relative to it


def read_source(source: Source) -> list[Record]:
    """All records of a source.

    Raises:
        ValueError: a file is missing, damaged or of no known form (file and entry are named), or
            most file names lead out of the image folder.
    """
    if source.splits and (not source.annotations or any(map(is_table, source.annotations))):
        raise ValueError("--split is for Karpathy's files; this source has no splits")
    for column in source.caption_columns:
        if source.caption_columns.count(column) > 1:
            raise ValueError(f"--caption_column {column} is given twice")
    if source.webdataset is not None:
        return read_tars(source.webdataset)
    if not source.annotations:
        raise ValueError("give the captions with --annotations FILE or --webdataset FOLDER")
    records = [record for path in source.annotations for record in _read_file(path, source)]
    _check_names(records, source.images_dir)
    return records


def _read_file(path: Path, source: Source) -> Iterator[Record]:
    relative = relative_to(source.images_dir)
    if is_table(path):
        yield from read_table(path, source.image_column, source.caption_columns, relative)
        return
    dataset = read_object(path)
    if is_karpathy(dataset):
        records = read_karpathy(path, dataset, source.splits)
    elif source.splits:
        raise ValueError(f"{path}: --split is for Karpathy's files; this one has no splits")
    else:
        records = read_coco(path, dataset)
    for record in records:
        name = relative(record.file_name)
        yield record if name == record.file_name else replace(record, file_name=name)


def _check_names(records: list[Record], images_dir: Path | None) -> None:
    """Single absolute names are rejected later; most of them mean that --images is wrong.

    Raises:
        ValueError: most file names are absolute paths outside `images_dir`.
    """
    outside = [record.file_name for record in records if record.file_name.startswith("/")]
    if images_dir is not None and len(outside) > len(records) / 2:
        raise ValueError(
            f"the annotations give absolute paths such as {outside[0]}, which is not inside "
            f"--images {images_dir}; give the folder that holds these files with --images"
        )
