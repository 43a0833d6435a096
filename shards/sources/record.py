"""What every source gives: one image with all its captions."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from shards.format.names import KEY_CHARACTERS, key_of

MAX_KEY = 80  # characters: with its extension a key must fit a ustar name of 100 bytes


@dataclass(frozen=True, slots=True)
class TarSpan:
    """The position of a member in a tar."""

    tar: str  # relative to the image folder
    offset: int  # bytes from the start of the tar to the data
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a source with all its captions. Only the types have been checked."""

    image_id: int | str
    file_name: str  # relative to the image folder
    captions: tuple[str, ...]
    span: TarSpan | None = None  # None: the image is a file of its own
    caption_span: TarSpan | None = None  # set where the captions are a member of a tar
    fault: tuple[str, str] | None = None  # reason and detail, where it is known to be unusable

    @property
    def key(self) -> str:
        """Sample key in the tar."""
        return key_of(self.image_id)


def name_key(file_name: str, plain: bool = True) -> str:
    """A sample key for an image that has no id: its file name without the extension.

    Characters that a key must not have are replaced, and 16 hex digits of the name's hash are
    appended, so that different names get different keys. `plain=False` appends them always.
    """
    stem = re.sub(r"\.\w{1,5}$", "", file_name)
    if plain and stem and len(stem) <= MAX_KEY and set(stem) <= KEY_CHARACTERS:
        return stem
    readable = "".join(c if c in KEY_CHARACTERS else "_" for c in stem.lower())[: MAX_KEY - 17]
    digest = hashlib.blake2b(file_name.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return f"{readable}-{digest}"


def relative_to(images_dir: Path | None) -> Callable[[str], str]:
    """A function that makes absolute file names inside the image folder relative to it.

    Other names stay as they are, and so does every name where `images_dir` is None or a URL.
    """
    if not isinstance(images_dir, Path):
        return lambda name: name
    folders = {str(images_dir), str(images_dir.absolute()), str(images_dir.resolve())}
    prefixes = tuple(folder.rstrip("/") + "/" for folder in folders if folder.startswith("/"))

    def relative(name: str) -> str:
        if name.startswith(prefixes):
            prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
            return name[len(prefix) :].lstrip("/")
        return name

    return relative


def source_sha256(records: Iterable[Record]) -> str:
    """Digest of the records of a source. It does not depend on their order."""
    total = hashlib.sha256()
    for record in sorted(records, key=lambda record: record.key):
        span = record.span and (record.span.tar, record.span.offset, record.span.size)
        line = json.dumps([record.image_id, record.file_name, record.captions, span])
        total.update(line.encode() + b"\n")
    return total.hexdigest()


def is_utf8(text: str) -> bool:
    """Whether text can be written as UTF-8. JSON may hold half an emoji (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
