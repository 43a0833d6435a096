"""What is settled before training: inputs read and found to fit, one run described.

Nothing here starts a process group or touches a GPU, so that a mistake costs a second and one line.
"""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from pipeline.checkpoint import folder as checkpoint
from pipeline.config.data import DataConfig
from pipeline.config.parser import load_config
from pipeline.config.run import Config
from pipeline.data.loader import EVAL_SHARDS
from pipeline.data.partition import streams_of_ranks
from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import ALGORITHM
from pipeline.model.captioner import Captioner
from pipeline.remote.location import locate_data_sets
from pipeline.runtime.run_lock import lock_run_dir
from pipeline.runtime.world import World
from shards.format import check_index
from shards.index_tars import unlisted_tars


@dataclass(frozen=True)
class Run:
    """A run whose inputs have been read and found to fit."""

    config: Config
    world: World
    streams: list[int]  # canonical streams that the ranks of this machine read
    train_shards: ShardFolder
    val_shards: ShardFolder | None
    val_digest: str | None  # of the set that the run's scores are of, also while there is none
    captioner: Captioner
    commit: Path | None  # where it goes on from
    damaged: Mapping[Path, str]  # newer commits that it passes over, and what is wrong with each
    lock: TextIO | None  # the main process's, on the run folder, for as long as the run lives
    num_slots: int  # positions of the sample sequence that it consumes
    num_steps: int

    @property
    def checkpoints(self) -> Path:
        """Folder of the commits."""
        return Path(self.config.run_dir) / "checkpoints"


def prepare(config: Config, world: World) -> Run:
    """Read everything that a user can have got wrong, before any process group or GPU starts.

    Raises:
        ValueError: names the folder or the setting at fault.
    """
    streams = streams_of_ranks(world.ranks_of_this_machine, world.world_size, config.data.streams)
    train_shards, val_shards = _open_shards(config.data, len(streams), world)
    digest = train_shards.manifest.tokenizer_sha256
    if val_shards and val_shards.manifest.tokenizer_sha256 != digest:
        raise ValueError(
            f"{config.data.val}: built with another tokenizer than {config.data.train}; build "
            "both with the same tokenizer.json"
        )
    if config.model.encoder.batch_norm == "sync" and not torch.cuda.is_available():
        raise ValueError("model.encoder.batch_norm: `sync` needs GPUs")
    parts = world.world_size * config.train.accumulation_steps
    if config.data.global_batch_size <= parts and config.model.encoder.batch_norm != "frozen":
        raise ValueError(
            f"data.global_batch_size: {config.data.global_batch_size} over {parts} parts is one "
            "image each, and batch normalisation cannot train on one"
        )
    epochs, steps = config.train.epochs, config.train.steps
    batch_size = config.data.global_batch_size
    num_slots = min(
        math.inf if epochs is None else epochs * len(train_shards),
        math.inf if steps is None else steps * batch_size,
    )
    num_steps = -(-int(num_slots) // batch_size)
    _make_run_dir(Path(config.run_dir))
    lock = lock_run_dir(Path(config.run_dir)) if world.is_main else None
    if world.is_main:
        _tell_unread_tars(train_shards, val_shards)
    commit, damaged = _commit_to_resume(config)
    if commit:
        _check_continues(commit, config, train_shards, int(num_slots), num_steps)
    val_digest = _check_scores(commit, val_shards)
    torch.manual_seed(config.seed)
    captioner = Captioner(
        config.model, train_shards.tokenizer.get_vocab_size(), pretrained=commit is None
    )
    _try_encoder(captioner, config)
    return Run(
        config=config,
        world=world,
        streams=streams,
        train_shards=train_shards,
        val_shards=val_shards,
        val_digest=val_digest,
        captioner=captioner,
        commit=commit,
        damaged=damaged,
        lock=lock,
        num_slots=int(num_slots),
        num_steps=num_steps,
    )


def _open_shards(
    data: DataConfig, num_streams: int, world: World
) -> tuple[ShardFolder, ShardFolder | None]:
    # Of each stream that is read here, the current block and the next.
    needed = [(data.train, 2 * data.shuffle_block * num_streams)]
    if data.val:
        needed.append((data.val, EVAL_SHARDS))
    located = locate_data_sets(needed, data.cache_dir, data.cache_gb, "data.cache")
    shards = [ShardFolder(folder, cache) for folder, cache in located]
    if world.is_local_main:  # once a machine: it may be long
        for opened in shards:
            if not opened.cache:  # which has seen to it
                check_index(opened.folder, opened.manifest)
    return shards[0], shards[1] if data.val else None


def _tell_unread_tars(*opened: ShardFolder | None) -> None:
    for shards in opened:
        if shards and shards.foreign and not shards.cache:
            for name in unlisted_tars(shards.folder, shards.manifest):
                print(
                    f"{shards.folder / name}: came after the index, and is not read; `python -m "
                    "shards index` takes it in, for a new run",
                    file=sys.stderr,
                )


def _make_run_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run_dir: {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"run_dir: {path}: cannot be written to")


@torch.no_grad()
def _try_encoder(captioner: Captioner, config: Config) -> None:
    """Some backbones take one size only, or none this small: better known now."""
    size = config.data.image_size
    captioner.encoder.eval()
    try:
        captioner.encoder(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"model.encoder.name: {config.model.encoder.name} does not take pictures of "
            f"data.image_size {size}: {str(error).splitlines()[0]}"
        ) from None


def _commit_to_resume(config: Config) -> tuple[Path | None, dict[Path, str]]:
    """The commit to go on from, and the damaged ones that are newer, each with its fault."""
    commits = list(checkpoint.commits(Path(config.run_dir) / "checkpoints"))
    if commits and config.train.resume == "never":
        raise ValueError(
            f"run_dir: {config.run_dir} holds checkpoints already; name another folder, or "
            "say train.resume auto to go on from them"
        )
    damaged: dict[Path, str] = {}
    for path in reversed(commits):
        try:
            checkpoint.check_commit(path)
        except ValueError as error:
            damaged[path] = str(error)
            if len(commits) > 1 and config.train.resume == "auto":
                raise ValueError(
                    f"{error}; the one before it is {commits[-2].name}: `train.resume previous` "
                    "goes on from there, or from the newest that is whole"
                ) from None
        else:
            return path, damaged
    if damaged:
        raise ValueError(
            f"{'; '.join(damaged.values())}; there is none before it to go on from: to train anew "
            "name another run_dir"
        )
    return None, damaged


def _check_continues(
    newest: Path, config: Config, shards: ShardFolder, num_slots: int, num_steps: int
) -> None:
    """Whether the run as it is now configured is the one that made the commit.

    Raises:
        ValueError: names the setting that differs.
    """
    state, old = checkpoint.load_state(newest), load_config(newest / checkpoint.CONFIG)
    if state["tokenizer_sha256"] != shards.manifest.tokenizer_sha256:
        raise ValueError(f"data.train: {shards.location} has another tokenizer than {newest}")
    comparisons: list[tuple[str, Any, Any]] = [
        ("data.train (the data set's digest)", state["digest"], shards.manifest.digest),
        ("the sample order's version", state["algorithm"], ALGORITHM),
        ("seed", old.seed, config.seed),
        ("data.global_batch_size", old.data.global_batch_size, config.data.global_batch_size),
        ("data.shuffle_block", old.data.shuffle_block, config.data.shuffle_block),
        ("data.streams", old.data.streams, config.data.streams),
        *_model_settings(old, config),
    ]
    for what, then, now in comparisons:
        if then != now:
            raise ValueError(
                f"{newest}: was trained with another value of {what} ({then}, now {now}); to "
                "train anew name another run_dir"
            )
    _check_position(newest, state, config.data.global_batch_size, num_slots, num_steps)


def _check_scores(commit: Path | None, val_shards: ShardFolder | None) -> str | None:
    """Whether the scores so far and those to come are of the same pictures.

    Returns:
        Their data set's digest.
    Raises:
        ValueError: they are not, so that the best of them would mean nothing.
    """
    digest = val_shards.manifest.digest if val_shards else None
    if commit is None:
        return digest
    scores = checkpoint.load_scores(commit.parent, checkpoint.step_of(commit))
    scored: str | None = checkpoint.load_state(commit).get("val_digest")
    if val_shards and scores and scored and scored != digest:
        raise ValueError(
            f"data.val: {val_shards.location} is not the validation set that {commit} was scored "
            f"on; delete {commit.parent / checkpoint.SCORES} to look for the best by the new one "
            "alone, or name another run_dir"
        )
    return digest or scored


def _check_position(
    commit: Path, state: dict[str, Any], batch_size: int, num_slots: int, num_steps: int
) -> None:
    """Whether the run as it is now configured passes through the commit."""
    step, consumed = state["step"], state["samples_consumed"]
    if step > num_steps:
        raise ValueError(
            f"train.steps, train.epochs: end the run after {num_steps:,} steps, but {commit} has "
            f"done {step:,} already"
        )
    if consumed < step * batch_size and consumed < num_slots:
        raise ValueError(
            f"train.steps, train.epochs: {commit} ended a run with an incomplete batch; a longer "
            "run would have filled it, and going on would leave those samples out; to train "
            "longer name another run_dir"
        )


def _model_settings(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """Name, old and new value of each model setting."""

    def flat(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in section.items():
            inside = isinstance(value, Mapping)
            found |= flat(value, f"{prefix}.{name}") if inside else {f"{prefix}.{name}": value}
        return found

    before, after = flat(asdict(old.model), "model"), flat(asdict(new.model), "model")
    for settings in (before, after):  # the commit brings the weights, wherever they came from
        weights = "model.encoder.weights"
        settings[weights] = "given" if settings[weights] is not None else None
    return [(name, before[name], after[name]) for name in before]
