"""Reading annotation files in JSON. Every entry is checked, and errors name the wrong one."""

import json
from pathlib import Path
from typing import Any

from shards.storage import read_bytes

MAX_DIGITS = 1000  # Python refuses longer numbers with an error that names no place
MAX_ID = 10**60  # sample keys are made of ids, and must fit the file names of a tar


def read_object(path: Path) -> dict[str, Any]:
    """Parse a file that holds one JSON object.

    Raises:
        ValueError: it is missing or something else; a syntax error has its line and column.
    """
    try:
        value = parse_json(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not JSON ({error}); captions come from COCO or Karpathy JSON or a table "
            "whose name ends in .csv, .tsv or .jsonl"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object at the top level")
    return value


def parse_json(text: str) -> Any:
    """Parse JSON, even with numbers that are too long for Python.

    Such a number becomes an infinite float. As an id it has the wrong type, and the error names its
    entry.

    Raises:
        ValueError, RecursionError: it is not JSON, or nested too deeply.
    """
    return json.loads(text, parse_int=_whole_number)


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) < MAX_DIGITS else float(digits)


def read_text(path: Path) -> str:
    """The text of an annotation file, without the byte order mark that spreadsheets write.

    Raises:
        ValueError: it is missing, a folder, or not UTF-8; the line is named.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such annotation file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; --annotations needs a file in it") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 ({error.reason})") from None


def entries_of(path: Path, value: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The list of objects that an annotation file has under the key `part`.

    Raises:
        ValueError: there is no such list, or an entry of it is not an object.
    """
    entries = value.get(part)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: no list `{part}`")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {part}[{position}] is not an object")
    return entries


def field_of(path: Path, where: str, entry: dict[str, Any], name: str, kind: type) -> Any:
    """A field of an entry. It must have exactly the type `kind`, and a number must not be negative.

    Args:
        where: names the entry in errors, such as "images[3]".
    Raises:
        ValueError: the field is missing, or has another type or an impossible value.
    """
    value: Any = entry.get(name)
    if type(value) is not kind:
        raise ValueError(f"{path}: {where} has no {kind.__name__} `{name}`")
    if isinstance(value, int) and not 0 <= value < MAX_ID:
        raise ValueError(f"{path}: {where} has an impossible `{name}`")
    return value
