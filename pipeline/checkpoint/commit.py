"""Writes, checks and reads one checkpoint: a folder that is complete or does not exist.

    step-00001000/
      model.safetensors   weights
      optimizer.pt        state of the optimiser and of the fp16 scaler, tensors and numbers only
      state.json          TrainState and RunIdentity
      config.yaml         the run's whole configuration
      tokenizer.json      the vocabulary
      files.json          sha256 of each of these, written last

To commit a checkpoint is to write it under a temporary name, sync it to the disk, and rename it.
Nothing in a checkpoint is unpickled into code.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.checkpoint.identity import RunIdentity
from pipeline.checkpoint.state import TrainState
from shards.atomic import fsync_folder
from shards.format.stored_json import canonical_json

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.pt"
STATE = "state.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.json"
FILES = "files.json"

FORMAT = 3  # of the folder; raise it with any change that an earlier version could misread


@dataclass(frozen=True)
class RunRecord:
    """What all checkpoints of a run have in common.

    Args:
        identity: what must stay the same when the run resumes.
        config: the run's configuration as YAML.
        tokenizer: file that each checkpoint gets a copy of.
    """

    identity: RunIdentity
    config: str
    tokenizer: Path


def commit(
    checkpoints: Path,
    record: RunRecord,
    state: TrainState,
    model: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
) -> Path:
    """Write one checkpoint. For the main process alone.

    Args:
        checkpoints: folder of the run's checkpoints.
        state: `state.step` names the checkpoint.
        model: the unwrapped model's state.
        optimizer: state that `torch.load(weights_only=True)` reads back.
    Returns:
        The checkpoint's folder. One that exists already is left as it is.
    Raises:
        OSError: the disk's own failures; earlier checkpoints stay untouched.
    """
    final = checkpoints / f"step-{state.step:08d}"
    if final.exists():
        return final
    temporary = temporary_path(final)
    if not checkpoints.exists():
        checkpoints.mkdir(parents=True, exist_ok=True)
        fsync_folder(checkpoints.parent)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    about = {"format": FORMAT, "state": state.to_json(), "identity": record.identity.to_json()}
    try:
        save_file({name: t.contiguous() for name, t in model.items()}, temporary / MODEL)
        _save_optimizer(optimizer, temporary / OPTIMIZER)
        (temporary / STATE).write_bytes(canonical_json(about))
        (temporary / CONFIG).write_text(record.config)
        shutil.copyfile(record.tokenizer, temporary / TOKENIZER)
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


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint is named by."""
    return int(checkpoint.name.removeprefix("step-"))


def check_checkpoint(path: Path) -> None:
    """Compare every file of a checkpoint with its digest.

    Raises:
        ValueError: there is no checkpoint, or it is damaged; names the first file that is missing,
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
    # Resolved: names the folder rather than the link `best` to it.
    return ValueError(f"{path.resolve()}: damaged checkpoint ({why})")


def load_model_state(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checked checkpoint, on the CPU."""
    return dict(load_file(path / MODEL))


def load_weight(path: Path, name: str) -> torch.Tensor:
    """One weight of a checked checkpoint, on the CPU.

    Args:
        name: its name in the captioner's state.
    Raises:
        ValueError: the checkpoint has no such weight.
    """
    with safe_open(path / MODEL, framework="pt") as weights:
        if name not in weights.keys():  # noqa: SIM118  # not a dictionary
            raise ValueError(f"{path.resolve()}: the model has no weight {name}")
        return cast(torch.Tensor, weights.get_tensor(name))


def load_optimizer_state(path: Path) -> dict[str, Any]:
    """The optimiser state of a checked checkpoint, on the CPU. Reads tensors and numbers only."""
    return dict(torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True))


def load_state(path: Path) -> tuple[TrainState, RunIdentity]:
    """How far the run of a checked checkpoint was, and which run it is.

    Raises:
        ValueError: the checkpoint was written by another version of Capstream.
    """
    about = json.loads((path / STATE).read_bytes())
    try:
        if about.get("format", 1) != FORMAT:
            raise ValueError(f"its format is {about.get('format', 1)}, this version reads {FORMAT}")
        return TrainState(**about["state"]), RunIdentity.from_json(about["identity"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path.resolve()}: written by another version of Capstream ({error}); continue that "
            "run with the version that began it, or name another run_dir"
        ) from None


def _sync_and_digest(path: Path) -> str:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_path(path: Path) -> Path:
    """Where a checkpoint lies while it is written or deleted: not under a checkpoint's name."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _save_optimizer(state: dict[str, Any], path: Path) -> None:
    """Like `torch.save`, but a full disk raises its OSError, not an error about positions."""
    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
