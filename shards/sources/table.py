"""A folder of images with a table of captions: CSV, TSV or JSON Lines."""

import csv
import io
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.format.names import image_id_of
from shards.sources.annotation_json import parse_json, read_text
from shards.sources.record import Record, name_key

# TSV has no quoting: a quote in a caption is a quote.
DIALECTS: dict[str, dict[str, Any]] = {
    ".csv": {"delimiter": ",", "strict": True},
    ".txt": {"delimiter": ",", "strict": True},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}
JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    file_name: str  # of its image
    captions: list[str]  # of all caption columns
    text: str  # the row as it stands in the file, with its line ends


def is_table(path: Path) -> bool:
    """Whether the file name is that of a table of captions."""
    return path.suffix.lower() in (*DIALECTS, *JSON_LINES)


def read_table(
    path: Path,
    image_column: str,
    caption_columns: Sequence[str],
    relative: Callable[[str], str] = lambda name: name,
) -> list[Record]:
    """The images of a table, sorted by name, each with the captions of all its rows in their order.

    Args:
        image_column: the column, or the key in JSON Lines, that holds the file names of the images.
        caption_columns: the same for captions. In JSON Lines a value is a string or a list of
            strings. Where several columns are named, a row may leave some of them empty.
        relative: makes a file name relative to the image folder.
    Raises:
        ValueError: the file is missing, or a line is malformed.
    """
    captions: dict[str, list[str]] = {}
    _, rows = read_rows(path, image_column, caption_columns)
    for row in rows:
        captions.setdefault(relative(row.file_name), []).extend(row.captions)
    if not captions:
        raise ValueError(f"{path}: lists no image")
    counts = Counter(map(name_key, captions))
    return [
        # a.jpg and a.png would have the same key: then the whole name is hashed into it
        Record(image_id_of(name_key(name, plain=counts[name_key(name)] == 1)), name, tuple(texts))
        for name, texts in sorted(captions.items())
    ]


def read_rows(
    path: Path, image_column: str, caption_columns: Sequence[str]
) -> tuple[str, Iterator[Row]]:
    """The header of a table as it stands in the file (empty for JSON Lines), and its rows.

    Raises:
        ValueError: the file is missing, or a line is malformed.
    """
    text = read_text(path)
    if path.suffix.lower() in JSON_LINES:
        return "", _json_rows(path, text, image_column, caption_columns)
    return _csv_rows(path, text, image_column, caption_columns)


def _csv_rows(
    path: Path, text: str, image_column: str, caption_columns: Sequence[str]
) -> tuple[str, Iterator[Row]]:
    lines = io.StringIO(text, newline="")
    taken: list[str] = []  # the lines that the row in hand is made of

    def take() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    def take_text() -> str:
        row_text = "".join(taken)
        taken.clear()
        return row_text

    reader = csv.reader(take(), **DIALECTS[path.suffix.lower()])

    def rows() -> Iterator[Row]:
        try:
            for row in reader:
                row_text = take_text()
                if not row:  # an empty line
                    continue
                if len(row) != len(header):
                    raise ValueError(
                        f"{path}: line {reader.line_num} has {len(row)} columns, not {len(header)}"
                    )
                name = _name(path, reader.line_num, row[image_at])
                yield Row(name, _filled([row[at] for at in captions_at]), row_text)
        except csv.Error as error:
            raise ValueError(f"{path}: line {reader.line_num}: {error}") from None

    try:
        header = next(reader, [])
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from None
    image_at = _column(path, header, image_column, "--image_column")
    captions_at = [_column(path, header, name, "--caption_column") for name in caption_columns]
    return take_text(), rows()


def _column(path: Path, header: list[str], name: str, option: str) -> int:
    if header.count(name) != 1:
        listed = ", ".join(header) or "nothing"
        how_often = "has no column" if name not in header else "has more than one column"
        raise ValueError(
            f"{path}: line 1 {how_often} {name!r}; it has {listed}; name the column with {option}"
        )
    return header.index(name)


def _json_rows(
    path: Path, text: str, image_column: str, caption_columns: Sequence[str]
) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            row: Any = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number}: not JSON ({error})") from None
        row = row if isinstance(row, dict) else {}
        several: list[str] = []
        for column in caption_columns:
            value = row.get(column)
            if value is None and len(caption_columns) > 1:
                value = []
            several += _json_captions(path, number, value, column)
        name = row.get(image_column)
        if not isinstance(name, str):
            raise ValueError(
                f"{path}: line {number} has no str `{image_column}`; "
                "name the key of the image with --image_column"
            )
        captions = several if len(caption_columns) == 1 else _filled(several)
        yield Row(_name(path, number, name), captions, line)


def _json_captions(path: Path, number: int, value: Any, column: str) -> list[str]:
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list) or not all(isinstance(text, str) for text in several):
        raise ValueError(
            f"{path}: line {number} has no `{column}`, a string or a list of strings; "
            "name the key of the captions with --caption_column"
        )
    return several


def _filled(captions: list[str]) -> list[str]:
    """The captions of a row. Of several columns, those that are empty hold no caption."""
    if len(captions) == 1:
        return captions
    return [caption for caption in captions if caption.strip()]


def _name(path: Path, line: int, name: str) -> str:
    if not name.strip():
        raise ValueError(f"{path}: line {line} names no image")
    return posixpath.normpath(name)  # ./a.jpg and a.jpg are one image
