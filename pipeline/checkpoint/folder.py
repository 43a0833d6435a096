"""The folder of a run's checkpoints: which there are, which are deleted.

checkpoints/
  step-00001000/            a checkpoint, see commit.py
  damaged-step-00002000/    a checkpoint that was found damaged and not used
  scores.json               step -> scores, of every evaluation so far
  best                      link to the checkpoint that scored best
"""

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.checkpoint.commit import step_of, temporary_path
from shards.atomic import fsync_folder

BEST = "best"

_NAME = re.compile(r"step-(\d{8,})")


def list_checkpoints(checkpoints: Path) -> Iterator[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in checkpoints.glob("step-*") if _NAME.fullmatch(path.name)]
    yield from sorted(found, key=step_of)


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one.

    Also deletes temporary files and folders that killed processes left behind.

    Raises:
        OSError: a checkpoint cannot be renamed.
    """
    best = (checkpoints / BEST).resolve()
    for path in list(list_checkpoints(checkpoints))[:-keep]:
        if path.resolve() != best:
            # Renamed first, so that a half-deleted folder is never taken for a checkpoint.
            path.rename(temporary_path(path))
    for leftover in checkpoints.glob(".*.tmp"):
        if leftover.is_dir() and not leftover.is_symlink():
            # What cannot be deleted now, such as a file that is open over NFS, is tried again after
            # the next checkpoint.
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that the run can write a checkpoint of that step again.

    Returns:
        Its new path, `damaged-NAME` beside it.
    """
    link = checkpoint.parent / BEST
    if link.is_symlink() and link.resolve() == checkpoint.resolve():
        link.unlink()
    endings = itertools.chain([""], (f".{number}" for number in itertools.count(1)))
    tried = (checkpoint.with_name(f"damaged-{checkpoint.name}{ending}") for ending in endings)
    aside = next(path for path in tried if not path.exists())
    checkpoint.rename(aside)
    fsync_folder(aside.parent)
    return aside
