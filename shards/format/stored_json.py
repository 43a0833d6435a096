"""Canonical JSON and its digest, and reading the JSON files of a shard folder."""

import hashlib
import json
from pathlib import Path
from typing import Any

from shards.storage import read_parsed


def canonical_json(value: Any) -> bytes:
    """Encode `value` so that equal values give equal bytes: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, as hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        what: says in errors what the file should be, such as "a manifest".
    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file cannot be read, or is not one JSON object.
    """
    try:
        value = read_parsed(path, json.loads)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as {what} ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not {what}")
    return value
