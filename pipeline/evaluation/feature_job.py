"""Encoding a data set once with a frozen backbone, into shards of features.

Each process encodes its share of the shards, by itself: processes do not wait for each other. What
is finished is not done again. The process that finishes the last shard writes the manifest.

V views an image, P grid positions, F features of the backbone, S image side in pixels
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import keyed_bytes
from pipeline.data.stored_features import FeaturePolicy, pack_features
from pipeline.data.transforms import center_crop, training_crop
from pipeline.data.worker_processes import loader_options
from pipeline.model.encoders.image_encoder import ImageEncoder
from pipeline.runtime.world import World
from shards.atomic import atomic_file
from shards.finalize import close_data_set, read_sidecars
from shards.format.manifest import Manifest
from shards.format.names import MANIFEST, TOKENIZER, shard_file, shard_tars
from shards.format.sidecar import Sidecar, read_sidecar, sidecar_path, write_sidecar
from shards.format.stored_json import canonical_json
from shards.format.tar import Extent, Member, add_to_tar, open_tar_for_writing
from shards.jobs import leave_tokenizer
from shards.retry import persistently
from shards.storage import size_of
from shards.tokenizer import UNK


class SourceBatch(NamedTuple):
    """Some samples of one shard."""

    shard: int
    pixels: torch.Tensor  # (B * V, S, S, 3) uint8
    keys: list[str]
    metas: list[dict[str, Any]]


@dataclass(frozen=True)
class FeatureJob:
    """What to encode, and where to.

    Args:
        source: the data set of images.
        out: folder of the features.
        policy: how they are made.
        batch_size: images that are encoded at once.
        workers: loader workers of each process.
    """

    source: ShardFolder
    out: Path
    policy: FeaturePolicy
    batch_size: int
    workers: int

    @property
    def build(self) -> dict[str, Any]:
        """What all sidecars of the features share."""
        manifest = self.source.manifest
        return {
            "name": manifest.name,
            "image_policy": self.policy.as_image_policy(),
            "tokenizer_sha256": manifest.tokenizer_sha256,
            "source_sha256": manifest.source_sha256,
        }

    @property
    def num_shards(self) -> int:
        """Shards of the data set, and of its features."""
        return len(self.source.manifest.shards)

    def tar(self, shard: int) -> Path:
        """Path of a shard of features."""
        return self.out / shard_file(self.source.manifest.name, shard)


def encode_data_set(
    job: FeatureJob, encoder: ImageEncoder, world: World, device: torch.device
) -> Manifest | None:
    """Encode this process's share of the shards.

    Args:
        encoder: in eval mode, on the device.
        world: of this process; it need not have joined the others.
        device: of this process.
    Returns:
        The manifest, if all shards are finished; None if other processes are still at work.
    Raises:
        ValueError: `out` holds another data set.
        BadSampleError: an image cannot be read. The features would not have the samples of the
            data set, whose order they share.
        OSError: a file cannot be read or written.
    """
    open_shards = [
        shard
        for shard in range(world.rank, job.num_shards, world.world_size)
        if not _is_finished(job, shard)
    ]
    if open_shards:
        manifest = job.out / MANIFEST  # says that all shards are there
        persistently(manifest, lambda: manifest.unlink(missing_ok=True))
        leave_tokenizer(job.out, job.source.folder / TOKENIZER)
    sizes = [job.source.manifest.shards[shard].num_samples for shard in open_shards]
    progress = tqdm(
        total=sum(sizes), desc="encoding", unit=" images", disable=not world.is_local_main
    )
    with progress:
        for shard in (s for s in open_shards if not job.source.manifest.shards[s].num_samples):
            _write_shard(job, shard, iter(()))
        for shard, batches in groupby(_batches(job, open_shards), key=lambda batch: batch.shard):
            _write_shard(job, shard, _encoded(encoder, batches, device, job.policy, progress))
    if len(shard_tars(job.out)) < job.num_shards:
        return None
    if not all(_is_finished(job, shard) for shard in range(job.num_shards)):
        return None
    tokenizer = job.source.folder / TOKENIZER
    return close_data_set(job.out, read_sidecars(job.out), tokenizer, 1.0, 1.0)[0]


def _is_finished(job: FeatureJob, shard: int) -> bool:
    """Whether a shard of features is there.

    Raises:
        ValueError: the folder holds another data set.
    """
    path = sidecar_path(job.tar(shard))
    try:
        sidecar = read_sidecar(path)
        whole = size_of(job.tar(shard)) == sidecar.num_bytes
    except FileNotFoundError:
        return False
    if sidecar.build != job.build or sidecar.num_shards != job.num_shards:
        raise ValueError(
            f"{job.out}: holds features of another data set or encoder, or images; choose another "
            "--out or remove this folder"
        )
    return whole


def _batches(job: FeatureJob, shards: list[int]) -> Iterator[SourceBatch]:
    """The samples of some shards, in order; no batch reaches into the next shard."""
    starts = job.source.index.shard_starts.tolist()
    batches = [
        np.arange(first, min(first + job.batch_size, starts[shard + 1]))
        for shard in shards
        for first in range(starts[shard], starts[shard + 1], job.batch_size)
    ]
    return iter(
        DataLoader(
            _SourceDataset(job.source, job.policy),
            sampler=batches,
            batch_size=None,
            **loader_options(job.workers if batches else 0),
        )
    )


class _SourceDataset(Dataset[SourceBatch]):
    """Batches of images as they are encoded, with their views; the index is an array of samples."""

    def __init__(self, source: ShardFolder, policy: FeaturePolicy) -> None:
        self.source, self.policy = source, policy
        self.starts = source.index.shard_starts

    def __getitem__(self, samples: np.ndarray) -> SourceBatch:
        size, views = self.policy.image_size, self.policy.views
        pixels = np.empty((len(samples) * views, size, size, 3), dtype=np.uint8)
        keys, metas = [], []
        for row, sample in enumerate(samples.tolist()):
            key, image, meta = self.source.read(sample)
            try:
                make_views(image, key, self.policy, pixels[row * views : (row + 1) * views])
            except ValueError as error:
                raise self.source.bad_sample(sample, str(error)) from None
            keys.append(key)
            metas.append(meta)
        shard = int(np.searchsorted(self.starts, samples[0], side="right")) - 1
        return SourceBatch(shard, torch.from_numpy(pixels), keys, metas)


def make_views(image: bytes, key: str, policy: FeaturePolicy, out: np.ndarray) -> None:
    """The views of an image: its center crop, then random crops that its key determines.

    Args:
        image: a JPEG.
        key: of its sample.
        out: (V, S, S, 3) uint8; receives the views.
    Raises:
        ValueError: the JPEG does not decode in full.
    """
    center_crop(image, out[0])
    for view in range(1, policy.views):
        draw = keyed_bytes(24, "feature view", policy.seed, view, key)
        training_crop(image, out[view], policy.min_crop, draw)
        if policy.flip and view % 2:
            out[view] = out[view, :, ::-1].copy()


@torch.no_grad()
def _encoded(
    encoder: ImageEncoder,
    batches: Iterator[SourceBatch],
    device: torch.device,
    policy: FeaturePolicy,
    progress: tqdm,
) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Key, npy file and JSON of each sample."""
    for batch in batches:
        features = encoder.features(batch.pixels.to(device, non_blocking=True))
        numbers = features.to(getattr(torch, policy.dtype)).cpu().numpy()
        views = numbers.reshape(len(batch.keys), policy.views, *policy.shape)
        for key, meta, one in zip(batch.keys, batch.metas, views, strict=True):
            if not np.isfinite(one).all():
                raise ValueError(
                    f"the features of {key} exceed what {policy.dtype} holds; use --dtype float32"
                )
            yield key, pack_features(one), meta
        progress.update(len(batch.keys))


def _write_shard(
    job: FeatureJob, shard: int, samples: Iterator[tuple[str, bytes, dict[str, Any]]]
) -> None:
    """Write one tar, then its sidecar."""
    members: list[Member] = []
    lengths: Counter[int] = Counter()
    num_unk = 0
    with atomic_file(job.tar(shard)) as file:
        with open_tar_for_writing(file) as tar:
            for key, features, meta in samples:
                text = canonical_json(meta)
                members.append(
                    Member(
                        key,
                        _add(tar, f"{key}.npy", features),
                        _add(tar, f"{key}.json", text),
                    )
                )
                lengths.update(map(len, meta["tokens"]))
                num_unk += sum(ids.count(UNK) for ids in meta["tokens"])
        num_bytes, sha256 = _size_and_sha256(file)
    write_sidecar(
        job.out,
        Sidecar(
            shard=job.tar(shard).name,
            number=shard,
            num_shards=job.num_shards,
            build=job.build,
            num_samples=len(members),
            num_captions=lengths.total(),
            num_tokens=sum(length * count for length, count in lengths.items()),
            num_unk=num_unk,
            caption_lengths=tuple(sorted(lengths.items())),
            num_bytes=num_bytes,
            sha256=sha256,
            members=tuple(members),
            quarantine=(),
            num_records=len(members),
        ),
    )


def _add(tar: Any, name: str, data: bytes) -> Extent:
    return Extent(add_to_tar(tar, name, data), len(data), zlib.crc32(data))


def _size_and_sha256(file: BinaryIO) -> tuple[int, str]:
    num_bytes = file.tell()
    file.seek(0)
    return num_bytes, hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
