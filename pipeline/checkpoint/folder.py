"""Commits: folders that hold a whole checkpoint and explain themselves, or do not exist.

    checkpoints/step-00001000/
      model.safetensors   weights
      optimizer.pt        optimiser (and fp16 scaler) state, tensors and numbers only
      state.json          step, position in the data, digests of the data
      config.yaml         the run's whole configuration
      tokenizer.json      the vocabulary
      files.json          sha256 of each of these, written last
    checkpoints/scores.json   step -> scores, of every evaluation so far
    checkpoints/best          link to the best-scoring commit
    checkpoints/damaged-step-00002000/   a commit that was found damaged and passed over

Written under a temporary name, synced, renamed; only then are older ones deleted, under a temporary
name again. Nothing in it is unpickled into code.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from shards.atomic import fsync_folder, write_atomic
from shards.format import canonical_json

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.pt"
STATE = "state.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.json"
FILES = "files.json"
BEST = "best"
SCORES = "scores.json"

_NAME = re.compile(r"step-(\d{8,})")


def commit(
    checkpoints: Path,
    state: dict[str, Any],
    model: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
    config: str,
    tokenizer: Path,
) -> Path:
    """Write one commit. For the main process alone.

    Args:
        checkpoints: folder of the commits.
        state: plain JSON; `step` names the commit.
        model: the unwrapped model's state.
        optimizer: state that `torch.load(weights_only=True)` reads back.
        config: YAML.
        tokenizer: file to copy.
    Returns:
        The commit's folder. One that stands already is left as it is.
    Raises:
        OSError: the disk's own failures; earlier commits stay untouched.
    """
    final = checkpoints / f"step-{state['step']:08d}"
    if final.exists():
        return final
    temporary = _temporary(final)
    if not checkpoints.exists():
        checkpoints.mkdir(parents=True, exist_ok=True)
        fsync_folder(checkpoints.parent)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file({name: t.contiguous() for name, t in model.items()}, temporary / MODEL)
        _save_optimizer(optimizer, temporary / OPTIMIZER)
        (temporary / STATE).write_bytes(canonical_json(state))
        (temporary / CONFIG).write_text(config)
        shutil.copyfile(tokenizer, temporary / TOKENIZER)
        names = (MODEL, OPTIMIZER, STATE, CONFIG, TOKENIZER)
        digests = {name: _sync_and_digest(temporary / name) for name in names}
        (temporary / FILES).write_bytes(canonical_json(digests))
        _sync_and_digest(temporary / FILES)
        fsync_folder(temporary)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(checkpoints)
    return final


def mark_best(commit_path: Path) -> None:
    """Point checkpoints/best to a commit, at one stroke."""
    link = commit_path.parent / BEST
    temporary = link.with_name(f".{BEST}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(commit_path.name)
    os.replace(temporary, link)
    fsync_folder(link.parent)


def load_scores(checkpoints: Path, last_step: int) -> dict[int, dict[str, float]]:
    """Step -> scores of the evaluations up to `last_step`, those of a run that goes on from it.

    Raises:
        ValueError: the file is damaged.
    """
    path = checkpoints / SCORES
    if not path.exists():
        return {}
    try:
        scores = {int(step): dict(found) for step, found in json.loads(path.read_bytes()).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged ({error}); delete it to go on: the scores of earlier evaluations are "
            "then forgotten, the checkpoints are not"
        ) from None
    return {step: found for step, found in scores.items() if step <= last_step}


def save_scores(checkpoints: Path, scores: Mapping[int, Mapping[str, float]]) -> None:
    """Write all scores anew, at one stroke."""
    write_atomic(checkpoints / SCORES, canonical_json({str(s): v for s, v in scores.items()}))


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest `keep` commits and the best one, and what kills left behind.

    Raises:
        OSError: a commit cannot be taken away.
    """
    best = (checkpoints / BEST).resolve()
    for path in list(commits(checkpoints))[:-keep]:
        if path.resolve() != best:
            path.rename(_temporary(path))  # half deleted it must not be taken for a commit
    for leftover in checkpoints.glob(".*.tmp"):
        if leftover.is_dir() and not leftover.is_symlink():
            # What stays, such as a file that is being read over NFS, goes another time.
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def set_aside(commit_path: Path) -> Path:
    """Rename a damaged commit, so that the run's next commit of that step can take its place.

    Returns:
        Its new path, `damaged-NAME` beside it.
    """
    link = commit_path.parent / BEST
    if link.is_symlink() and link.resolve() == commit_path.resolve():
        link.unlink()
    endings = itertools.chain([""], (f".{number}" for number in itertools.count(1)))
    tried = (commit_path.with_name(f"damaged-{commit_path.name}{ending}") for ending in endings)
    aside = next(path for path in tried if not path.exists())
    commit_path.rename(aside)
    fsync_folder(aside.parent)
    return aside


def commits(checkpoints: Path) -> Iterator[Path]:
    """The commits of a folder, oldest first."""
    found = [path for path in checkpoints.glob("step-*") if _NAME.fullmatch(path.name)]
    yield from sorted(found, key=step_of)


def step_of(commit_path: Path) -> int:
    """The step that a commit is named by."""
    return int(commit_path.name.removeprefix("step-"))


def check_commit(path: Path) -> None:
    """Read every file of a commit against its digest.

    Raises:
        ValueError: there is no commit, or it is damaged; names the first file that is missing,
            unreadable or not as it was written.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such checkpoint")
    if not any(os.path.lexists(path / name) for name in (FILES, MODEL, STATE)):
        raise ValueError(f"{path}: not a checkpoint, such as RUN_DIR/checkpoints/best")
    try:
        digests = json.loads((path / FILES).read_bytes())
        expected = {MODEL, OPTIMIZER, STATE, CONFIG, TOKENIZER}
        if not isinstance(digests, dict) or set(digests) != expected:
            raise ValueError("lists other files than a checkpoint has")
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"{FILES}: {error}") from None
    for name, digest in digests.items():
        try:
            with open(path / name, "rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError as error:
            raise _damaged(path, f"{name}: {error}") from None
        if not whole:
            raise _damaged(path, f"{name} is not as it was written")


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path.resolve()}: damaged checkpoint ({why})")  # what `best` links to


def load_model_state(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checked commit, on the CPU."""
    return dict(load_file(path / MODEL))


def load_optimizer_state(path: Path) -> dict[str, Any]:
    """The optimiser state of a checked commit, on the CPU. Unpickles tensors and numbers only."""
    return dict(torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True))


def load_state(path: Path) -> dict[str, Any]:
    """state.json of a checked commit."""
    return dict(json.loads((path / STATE).read_bytes()))


def _sync_and_digest(path: Path) -> str:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    """Where a commit lies while it is written or deleted: not under a commit's name."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _save_optimizer(state: dict[str, Any], path: Path) -> None:
    """As `torch.save`, but a full disk is called that, and not an unexpected position."""
    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
