"""The names of files and samples in a shard folder."""

from pathlib import Path

from shards.retry import persistently

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
INDEX = "index.npz"
QUARANTINE = "quarantine.jsonl"

KEY_CHARACTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyz_-")


def key_of(image_id: int | str) -> str:
    """The sample key of an image id.

    A whole number is written with 12 digits. A string of key characters is its own key.

    Raises:
        ValueError: the id is neither.
    """
    if isinstance(image_id, int) and not isinstance(image_id, bool) and image_id >= 0:
        return f"{image_id:012d}"
    if isinstance(image_id, str) and image_id and set(image_id) <= KEY_CHARACTERS:
        return image_id
    raise ValueError(f"image id {image_id!r} is neither a whole number nor [0-9a-z_-]+")


def image_id_of(key: str) -> int | str:
    """The image id of a sample key: the inverse of `key_of`.

    There is one exception. A string id that looks like the key of a number, such as
    "000000000139", comes back as that number, because both have the same key.
    """
    return int(key) if key.isdecimal() and key_of(int(key)) == key else key


def shard_file(name: str, number: int) -> str:
    """File name of the tar with shard number `number` of the data set `name`."""
    return f"{name}-{number:06d}.tar"


def shard_tars(folder: Path) -> list[Path]:
    """The tars in a folder whose names have the form of `shard_file`, sorted by name."""
    pattern = "*-[0-9][0-9][0-9][0-9][0-9][0-9].tar"
    return persistently(folder, lambda: sorted(folder.glob(pattern), key=lambda path: path.name))
