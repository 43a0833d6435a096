"""Reads and checks all inputs of a run before anything starts.

No process group is joined and no GPU is touched here, so a mistake costs a second and one line.
"""

import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from pipeline.checkpoint.best import Scores, load_scores
from pipeline.checkpoint.commit import load_model_state, step_of
from pipeline.checkpoint.identity import RunIdentity
from pipeline.checkpoint.resume import (
    ResumePoint,
    check_continues,
    check_scores,
    find_resume_point,
)
from pipeline.config.data import DataConfig
from pipeline.config.generation import used_settings
from pipeline.config.run import Config
from pipeline.data.loader import EVAL_SHARDS
from pipeline.data.partition import streams_of_ranks
from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import ALGORITHM
from pipeline.distributed.process_group import runs_on_cpu
from pipeline.evaluation.features import check_features, check_frozen
from pipeline.model.captioner import Captioner
from pipeline.model.encoders.image_encoder import ImageEncoder, encode_black
from pipeline.model.encoders.tuning import batch_norms, freeze_unused
from pipeline.remote.location import locate_data_sets
from pipeline.runtime.run_lock import lock_run_dir
from pipeline.runtime.world import World
from pipeline.training.schedule import Schedule, make_schedule
from shards.format.manifest import check_index
from shards.index_tars import unlisted_tars


@dataclass(frozen=True)
class Run:
    """A run whose inputs have been read and checked.

    Args:
        streams: canonical streams that the ranks of this machine read.
        resume: where it continues from.
        scores: of the evaluations before that.
        lock: of the main process, on the run folder; held as long as the run lives.
        num_slots: positions of the sample sequence that the run consumes in all.
        num_steps: steps of the whole run.
    """

    config: Config
    world: World
    streams: Sequence[int]
    train_shards: ShardFolder
    val_shards: ShardFolder | None
    captioner: Captioner
    identity: RunIdentity
    resume: ResumePoint
    scores: Scores
    lock: TextIO | None
    num_slots: int
    num_steps: int
    schedule: Schedule

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return Path(self.config.run_dir) / "checkpoints"

    def samples_of_step(self, step: int) -> int:
        """Samples in the global batch of a step; the last one of the run may hold fewer."""
        batch_size = self.config.data.global_batch_size
        return min((step + 1) * batch_size, self.num_slots) - step * batch_size


def prepare(config: Config, world: World) -> Run:
    """Read and check everything that a user may have got wrong.

    Raises:
        ValueError: names the folder or the setting at fault.
    """
    streams = streams_of_ranks(world.ranks_of_this_machine, world.world_size, config.data.streams)
    train_shards, val_shards = _open_shards(config.data, len(streams), world)
    if config.model.encoder.batch_norm == "sync" and runs_on_cpu():
        raise ValueError("model.encoder.batch_norm: `sync` needs GPUs")
    num_samples, batch_size = len(train_shards), config.data.global_batch_size
    num_slots = _num_slots(config, num_samples)
    num_steps = -(-num_slots // batch_size)
    frozen_epochs = config.model.encoder.frozen_epochs
    schedule = make_schedule(
        config.optim, config.train, num_samples, batch_size, num_steps, frozen_epochs
    )
    run_dir = Path(config.run_dir)
    _make_run_dir(run_dir)
    with ExitStack() as on_error:
        lock = lock_run_dir(run_dir) if world.is_main else None
        if lock:
            on_error.callback(lock.close)
        if world.is_main:
            _name_unlisted_tars(train_shards, val_shards)
        manifest = train_shards.manifest
        identity = RunIdentity.of(config, manifest.digest, manifest.tokenizer_sha256, ALGORITHM)
        resume = find_resume_point(run_dir / "checkpoints", config.train.resume)
        scores = Scores()
        if resume.checkpoint:
            check_continues(resume.checkpoint, identity, batch_size, num_slots, num_steps)
            scores = _scores_so_far(config, resume.checkpoint, val_shards)
        captioner = _make_captioner(config, train_shards, val_shards, resume, world)
        on_error.pop_all()  # the run keeps the lock
    return Run(
        config=config,
        world=world,
        streams=streams,
        train_shards=train_shards,
        val_shards=val_shards,
        captioner=captioner,
        identity=identity,
        resume=resume,
        scores=scores,
        lock=lock,
        num_slots=num_slots,
        num_steps=num_steps,
        schedule=schedule,
    )


def _scores_so_far(config: Config, checkpoint: Path, val_shards: ShardFolder | None) -> Scores:
    """The scores of the run's evaluations. They must be comparable with those of later ones."""
    scores = load_scores(checkpoint.parent, step_of(checkpoint))
    if val_shards:
        digest, generation = val_shards.manifest.digest, used_settings(config.generation)
        check_scores(checkpoint, scores, val_shards.location, digest, generation)
    return scores


def _make_captioner(
    config: Config,
    train_shards: ShardFolder,
    val_shards: ShardFolder | None,
    resume: ResumePoint,
    world: World,
) -> Captioner:
    """The captioner with the weights that the run continues from, tried on its images or features.

    The checkpoint is read here, since stored features must fit the weights of its backbone.
    """
    torch.manual_seed(config.seed)
    vocab_size = train_shards.tokenizer.get_vocab_size()
    captioner = Captioner(config.model, vocab_size, pretrained=resume.checkpoint is None)
    if resume.checkpoint:
        captioner.load_state_dict(load_model_state(resume.checkpoint))
    _try_encoder(captioner.encoder, config.data.image_size)
    _check_batch_norm(captioner.encoder, config, world)
    for shards in (train_shards, val_shards):
        if shards:
            check_frozen(shards, captioner.encoder)
            check_features(shards, captioner, config.data.image_size, "this run")
    return captioner


def _open_shards(
    data: DataConfig, num_streams: int, world: World
) -> tuple[ShardFolder, ShardFolder | None]:
    # Of each stream that is read here, the current block and the next.
    needed = [(data.train, 2 * data.shuffle_block * num_streams)]
    if data.val:
        needed.append((data.val, EVAL_SHARDS))
    located = locate_data_sets(needed, data.cache_dir, data.cache_gb, "data.cache")
    shards = [ShardFolder(folder, cache) for folder, cache in located]
    if world.is_local_main:  # once on each machine, since a large index takes long
        for opened in shards:
            if not opened.cache:  # the cache has checked its own
                check_index(opened.folder, opened.manifest)
    train, val = shards[0], shards[1] if data.val else None
    if val and val.manifest.tokenizer_sha256 != train.manifest.tokenizer_sha256:
        raise ValueError(
            f"{data.val}: built with another tokenizer than {data.train}; build both with the same "
            "tokenizer.json"
        )
    return train, val


def _num_slots(config: Config, num_samples: int) -> int:
    """Positions of the sample sequence until `train.steps` or `train.epochs` ends the run."""
    epochs, steps = config.train.epochs, config.train.steps
    by_epochs = math.inf if epochs is None else epochs * num_samples
    by_steps = math.inf if steps is None else steps * config.data.global_batch_size
    return int(min(by_epochs, by_steps))


def _name_unlisted_tars(*opened: ShardFolder | None) -> None:
    for shards in opened:
        if shards and shards.foreign and not shards.cache:
            for name in unlisted_tars(shards.folder, shards.manifest):
                print(
                    f"{shards.folder / name}: added after the folder was indexed, so it is not "
                    "read; `python -m shards index` adds it, for a new run",
                    file=sys.stderr,
                )


def _make_run_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run_dir: {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"run_dir: {path}: cannot be written to")


def _try_encoder(encoder: ImageEncoder, image_size: int) -> None:
    """Encode one image, and exclude layers that the output does not need from the training."""
    features = encode_black(encoder.eval(), image_size)
    if encoder.backbone.output == "grid":  # the vector is what enters the classifier
        freeze_unused(encoder.backbone, features)


def _check_batch_norm(encoder: ImageEncoder, config: Config, world: World) -> None:
    """Whether the BatchNorm layers that are trained can be: one image has no variance."""
    if not any(layer.training for layer in batch_norms(encoder.train())):
        return
    parts = config.train.accumulation_steps
    if config.model.encoder.batch_norm != "sync":  # which sees those of all processes
        parts *= world.world_size
    if config.data.global_batch_size <= parts:
        raise ValueError(
            f"data.global_batch_size: {config.data.global_batch_size} images over {parts} "
            "micro-batches is one image each, and batch normalisation cannot train on one"
        )
