"""One data set, whatever its form: the form shows in the file's name and contents."""

from dataclasses import dataclass
from pathlib import Path

from shards.sources.annotation_json import read_object
from shards.sources.coco import read_coco
from shards.sources.karpathy import is_karpathy, read_karpathy
from shards.sources.record import Record
from shards.sources.table import is_table, read_table
from shards.sources.tars import read_tars


@dataclass(frozen=True)
class Source:
    """Where a data set's captions are to be found, and which of them are wanted."""

    annotations: Path | None  # a caption file
    webdataset: Path | None = None  # a folder of tars with captions in them
    splits: tuple[str, ...] = ()  # of Karpathy's files
    image_column: str = "image"  # of tables
    caption_column: str = "caption"


def read_source(source: Source) -> list[Record]:
    """All records of a source.

    Raises:
        ValueError: it is missing, damaged or of no known form; file and entry are named.
    """
    if source.splits and (source.annotations is None or is_table(source.annotations)):
        raise ValueError("--split is for Karpathy's files; this source has no splits")
    if source.webdataset is not None:
        return read_tars(source.webdataset)
    path = source.annotations
    if path is None:
        raise ValueError("say where the captions are: --annotations FILE or --webdataset FOLDER")
    if is_table(path):
        return read_table(path, source.image_column, source.caption_column)
    dataset = read_object(path)
    if is_karpathy(dataset):
        return read_karpathy(path, dataset, source.splits)
    if source.splits:
        raise ValueError(f"{path}: --split is for Karpathy's files; this one has no splits")
    return read_coco(path, dataset)
