"""How counts and errors of the system are put into words."""

import errno
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

# The errors that a wrong path causes, as a user meets them.
SENTENCES = {
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "is a folder, where a file is needed",
    errno.ENOTDIR: "is not a folder, or a part of the path is a file",
    errno.EEXIST: "is a file, where a folder is needed",
    errno.EACCES: "permission denied",
    errno.EROFS: "the file system is read-only",
}


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 shard", "2 shards", "1,000 shards"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def system_error(error: BaseException, arguments: Namespace | None = None) -> str:
    """An error as one plain sentence: the path and the cause, without the system's error number.

    Args:
        arguments: the parsed command line; the option that gave the path is named with it.
    """
    if not isinstance(error, OSError) or error.errno is None:
        if isinstance(error, FileNotFoundError):  # of a store's library, which gives the path only
            return f"{error}: no such file or folder"
        return str(error)
    sentence = SENTENCES.get(error.errno) or os.strerror(error.errno)
    if error.filename is None:
        return sentence
    path = os.fspath(error.filename)
    path = path.decode(errors="replace") if isinstance(path, bytes) else str(path)
    return f"{_option_of(path, arguments)}{path}: {sentence}"


def _option_of(path: str, arguments: Namespace | None) -> str:
    """The option whose value is this path, with a space behind it; empty if there is none."""
    for name, value in vars(arguments).items() if arguments else ():
        given: list[Any] = value if isinstance(value, list) else [value]
        if any(isinstance(one, Path) and str(one) == path for one in given):
            return f"--{name} " if name != "dir" else ""
    return ""
