"""Commits: folders that hold a whole checkpoint and explain themselves, or do not exist.

    checkpoints/step-00001000/
      model.safetensors   weights
      optimizer.pt        optimiser (and fp16 scaler) state, tensors and numbers only
      state.json          step, position in the data, scores
      config.yaml         the run's whole configuration
      tokenizer.json      the vocabulary
      files.json          sha256 of each of these, written last
    checkpoints/best      link to the best-scoring one

Written under a temporary name, synced, renamed; only then are older ones deleted. Nothing in it is
unpickled into code.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from shards.atomic import fsync_folder
from shards.format import canonical_json

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.pt"
STATE = "state.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.json"
FILES = "files.json"
BEST = "best"

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
    temporary = checkpoints / f".{final.name}.{os.getpid()}.tmp"
    checkpoints.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file({name: t.contiguous() for name, t in model.items()}, temporary / MODEL)
        torch.save(optimizer, temporary / OPTIMIZER)
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


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest `keep` commits and the best one, and what kills left behind."""
    best = (checkpoints / BEST).resolve()
    for path in list(commits(checkpoints))[:-keep]:
        if path.resolve() != best:
            shutil.rmtree(path)
    for leftover in checkpoints.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def commits(checkpoints: Path) -> Iterator[Path]:
    """The commits of a folder, oldest first."""
    found = [
        (match, path)
        for path in checkpoints.glob("step-*")
        if (match := _NAME.fullmatch(path.name))
    ]
    yield from (path for _, path in sorted(found, key=lambda item: int(item[0][1])))


def check_commit(path: Path) -> None:
    """Read every file of a commit against its digest.

    Raises:
        ValueError: names the first file that is missing or not as it was written.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        digests = json.loads((path / FILES).read_bytes())
        expected = {MODEL, OPTIMIZER, STATE, CONFIG, TOKENIZER}
        if not isinstance(digests, dict) or set(digests) != expected:
            raise ValueError("lists other files than a checkpoint has")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged checkpoint ({FILES}: {error})") from None
    for name, digest in digests.items():
        try:
            with open(path / name, "rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError as error:
            raise ValueError(f"{path}: damaged checkpoint ({error})") from None
        if not whole:
            raise ValueError(f"{path}: damaged checkpoint ({name} is not as it was written)")


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
