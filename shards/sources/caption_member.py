"""The captions of a sample in a tar made by anyone: `.txt`, one caption, or `.json`, an object."""

import contextlib
from typing import Any

from shards.sources.annotation_json import parse_json


def read_captions(data: bytes, is_text: bool | None = None) -> tuple[str, ...]:
    """The captions of one such file.

    Args:
        is_text: whether it is one caption rather than JSON; None tells them apart by whether it is
            an object with captions, which no caption looks like.
    Raises:
        ValueError: it is neither; says why.
    """
    if is_text is None:
        with contextlib.suppress(ValueError):
            if captions := read_captions(data, is_text=False):
                return captions
        is_text = True
    try:
        text = data.decode("utf-8-sig")
        if is_text:
            return (text.strip(),)
        value: Any = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    found = value.get("captions", value.get("caption"))
    several = [found] if isinstance(found, str) else found if found is not None else []
    if not isinstance(several, list) or not all(isinstance(text, str) for text in several):
        raise ValueError("`captions` is no list of strings")
    return tuple(several)
