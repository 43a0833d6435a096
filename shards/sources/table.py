"""A folder of images with a table of captions: CSV, TSV or JSON Lines."""

import csv
import io
import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.format.names import image_id_of
from shards.sources.annotation_json import parse_json, read_text
from shards.sources.record import Record, name_key

# A table of tabs knows no quotes: one in a caption is a quote.
DIALECTS: dict[str, dict[str, Any]] = {
    ".csv": {"delimiter": ",", "strict": True},
    ".txt": {"delimiter": ",", "strict": True},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}
JSON_LINES = (".jsonl", ".ndjson")


def is_table(path: Path) -> bool:
    """Whether a file's name is that of a table of captions."""
    return path.suffix.lower() in (*DIALECTS, *JSON_LINES)


def read_table(path: Path, image_column: str, caption_column: str) -> list[Record]:
    """The images of a table, by name, each with the captions of all its rows in their order.

    Args:
        image_column: header of the column, or key in JSON Lines, with the images' file names.
        caption_column: the same for captions; in JSON Lines a string or a list of strings.
    Raises:
        ValueError: the file is missing, or a line of it is not as it should be.
    """
    text = read_text(path)
    rows = _json_rows if path.suffix.lower() in JSON_LINES else _csv_rows
    captions: dict[str, list[str]] = {}
    for name, caption in rows(path, text, image_column, caption_column):
        captions.setdefault(name, []).extend(caption)
    if not captions:
        raise ValueError(f"{path}: lists no image")
    counts = Counter(map(name_key, captions))
    return [
        # a.jpg and a.png: only their whole names tell them apart
        Record(image_id_of(name_key(name, plain=counts[name_key(name)] == 1)), name, tuple(texts))
        for name, texts in sorted(captions.items())
    ]


def _csv_rows(
    path: Path, text: str, image_column: str, caption_column: str
) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), **DIALECTS[path.suffix.lower()])
    try:
        header = next(reader, [])
        columns = []
        for column in (image_column, caption_column):
            if header.count(column) != 1:
                raise ValueError(
                    f"{path}: line 1 has no single column {column!r}, but {', '.join(header)}; "
                    "name the right ones with --image_column and --caption_column"
                )
            columns.append(header.index(column))
        for row in reader:
            if not row:  # an empty line
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{path}: line {reader.line_num} has {len(row)} columns, not {len(header)}"
                )
            yield _name(path, reader.line_num, row[columns[0]]), [row[columns[1]]]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from None


def _json_rows(
    path: Path, text: str, image_column: str, caption_column: str
) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            row: Any = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number}: not JSON ({error})") from None
        name = row.get(image_column) if isinstance(row, dict) else None
        caption = row.get(caption_column) if isinstance(row, dict) else None
        several = [caption] if isinstance(caption, str) else caption
        if not isinstance(several, list) or not all(isinstance(text, str) for text in several):
            raise ValueError(
                f"{path}: line {number} has no `{caption_column}`, a string or a list of strings; "
                "name the right key with --caption_column"
            )
        if not isinstance(name, str):
            raise ValueError(
                f"{path}: line {number} has no str `{image_column}`; "
                "name the right key with --image_column"
            )
        yield _name(path, number, name), several


def _name(path: Path, line: int, name: str) -> str:
    if not name.strip():
        raise ValueError(f"{path}: line {line} names no image")
    return posixpath.normpath(name)  # ./a.jpg is a.jpg
