"""The captions in a tar made by others: a `.txt` member with one caption, or a `.json` object."""

import contextlib
from typing import Any

from shards.sources.annotation_json import parse_json


def read_captions(data: bytes, is_text: bool | None = None) -> tuple[str, ...]:
    """The captions in the bytes of one such member.

    Args:
        is_text: whether it is one caption rather than JSON. None finds out: an object that has
            captions is JSON, anything else is a caption.
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
        raise ValueError("not a JSON object")
    found = value.get("captions", value.get("caption"))
    several = [found] if isinstance(found, str) else found if found is not None else []
    if not isinstance(several, list) or not all(isinstance(text, str) for text in several):
        raise ValueError("`captions` is not a list of strings")
    return tuple(several)
