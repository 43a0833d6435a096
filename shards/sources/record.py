"""What every source gives: one image with all its captions."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from shards.format.names import KEY_CHARACTERS, key_of

MAX_KEY = 80  # characters; with its extension a key must fit a ustar name of 100 bytes


@dataclass(frozen=True, slots=True)
class TarSpan:
    """Where an image lies that is a member of a tar."""

    tar: str  # relative to the image folder
    offset: int  # bytes from the start of the tar to the image
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a source with all its captions, nothing checked but the types."""

    image_id: int | str
    file_name: str  # relative to the image folder
    captions: tuple[str, ...]
    span: TarSpan | None = None  # None: the image is a file of its own
    caption_span: TarSpan | None = None  # of the captions, where they are a member of a tar too
    fault: tuple[str, str] | None = None  # reason and detail, if it is known to be bad

    @property
    def key(self) -> str:
        """Sample key in the tar."""
        return key_of(self.image_id)


def name_key(file_name: str, plain: bool = True) -> str:
    """A sample key for an image that has a name only: the name without its extension.

    Where that has other characters than a key may have, or is not to be `plain`, they are replaced,
    and sixteen digits of the name's hash keep different names apart.
    """
    stem = re.sub(r"\.\w{1,5}$", "", file_name)
    if plain and stem and len(stem) <= MAX_KEY and set(stem) <= KEY_CHARACTERS:
        return stem
    readable = "".join(c if c in KEY_CHARACTERS else "_" for c in stem.lower())[: MAX_KEY - 17]
    digest = hashlib.blake2b(file_name.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return f"{readable}-{digest}"


def source_sha256(records: Iterable[Record]) -> str:
    """Digest of what was read from a source, in whatever order it was stored."""
    total = hashlib.sha256()
    for record in sorted(records, key=lambda record: record.key):
        span = record.span and (record.span.tar, record.span.offset, record.span.size)
        line = json.dumps([record.image_id, record.file_name, record.captions, span])
        total.update(line.encode() + b"\n")
    return total.hexdigest()


def is_utf8(text: str) -> bool:
    """Whether text can be written as UTF-8: JSON may hold half an emoji (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
