"""Encoding a data set once with a frozen backbone, into shards of features.

Each process encodes its share of the shards, by itself: processes do not wait for each other. What
is finished is not done again. The process that finishes the last shard writes the manifest.

V views an image, P grid positions, F features of the backbone, S image side in pixels
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.data.reader import ShardFolder
from pipeline.data.views import ViewBatch, ViewDataset
from pipeline.data.worker_processes import loader_options
from pipeline.model.encoders.image_encoder import ImageEncoder
from pipeline.remote.prefetch import prefetch_shards
from pipeline.runtime.world import World
from shards.atomic import atomic_file
from shards.finalize import close_data_set, read_sidecars
from shards.format.features import FeaturePolicy, pack_features
from shards.format.manifest import Manifest
from shards.format.names import MANIFEST, TOKENIZER, shard_file, shard_tars
from shards.format.sidecar import Sidecar, read_sidecar, sidecar_path, write_sidecar
from shards.format.stored_json import canonical_json
from shards.format.tar import Extent, Member, add_to_tar, open_tar_for_writing
from shards.jobs import leave_tokenizer
from shards.retry import persistently
from shards.storage import size_of
from shards.tokenizer import UNK

Sample = tuple[int, str, bytes, dict[str, Any]]  # shard, key, npy file, JSON


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
    _check_tars(job)
    ranks = world.ranks_of_this_machine
    # Of all processes of the machine, because one of them prefetches for all.
    open_here = [
        shard
        for shard in range(job.num_shards)
        if shard % world.world_size in ranks and not _is_finished(job, shard)
    ]
    open_shards = [shard for shard in open_here if shard % world.world_size == world.rank]
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
            _write_shard(job, shard, ())
        batches = _batches(job, open_shards, open_here, world.is_local_main, device)
        samples = _encoded(encoder, batches, device, job.policy, progress)
        for shard, one_shard in groupby(samples, key=itemgetter(0)):
            _write_shard(job, shard, one_shard)
    if len(shard_tars(job.out)) < job.num_shards:
        return None
    if not all(_is_finished(job, shard) for shard in range(job.num_shards)):
        return None
    tokenizer = job.source.folder / TOKENIZER
    return close_data_set(job.out, read_sidecars(job.out), tokenizer, 1.0, 1.0)[0]


def _check_tars(job: FeatureJob) -> None:
    """Raises ValueError if the folder holds tars that are not of these features."""
    planned = {job.tar(shard).name for shard in range(job.num_shards)}
    if {path.name for path in shard_tars(job.out)} - planned:
        raise _another_data_set(job)


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
        raise _another_data_set(job)
    return whole


def _another_data_set(job: FeatureJob) -> ValueError:
    return ValueError(
        f"{job.out}: holds images, or features of another data set or encoder, or made with other "
        "settings; choose another --out or remove this folder"
    )


def _batches(
    job: FeatureJob, shards: list[int], expected: list[int], prefetch: bool, device: torch.device
) -> Iterator[ViewBatch]:
    """The samples of some shards, in order; no batch reaches into the next shard.

    Args:
        expected: shards that the processes of this machine need, about in this order.
        prefetch: whether to fetch those behind a URL in advance.
    """
    starts = job.source.index.shard_starts.tolist()
    batches = [
        np.arange(first, min(first + job.batch_size, starts[shard + 1]))
        for shard in shards
        for first in range(starts[shard], starts[shard + 1], job.batch_size)
    ]
    loader: DataLoader[ViewBatch] = DataLoader(
        ViewDataset(job.source, job.policy),
        sampler=batches,
        batch_size=None,
        pin_memory=device.type == "cuda",
        **loader_options(job.workers if batches else 0),
    )
    if job.source.cache is None or not prefetch:
        return iter(loader)
    of_batch = [int(np.searchsorted(starts, batch[0], side="right")) - 1 for batch in batches]

    def needed(num_batches: int) -> Iterable[int]:
        first = of_batch[num_batches] if num_batches < len(of_batch) else job.num_shards
        return (shard for shard in expected if shard >= first)

    return prefetch_shards(loader, job.source.cache, needed)


def _encoded(
    encoder: ImageEncoder,
    batches: Iterable[ViewBatch],
    device: torch.device,
    policy: FeaturePolicy,
    progress: tqdm,
) -> Iterator[Sample]:
    """The samples of all batches. A GPU encodes the next batch while one is packed and written."""

    def packed(batch: ViewBatch, finish: Callable[[], np.ndarray]) -> Iterator[Sample]:
        views = finish().reshape(len(batch.keys), policy.views, *policy.shape)
        for key, meta, one in zip(batch.keys, batch.metas, views, strict=True):
            if not np.isfinite(one).all():
                raise ValueError(_not_finite(key, one))
            yield batch.shard, key, pack_features(one), meta
        progress.update(len(batch.keys))

    latest: tuple[ViewBatch, Callable[[], np.ndarray]] | None = None
    for batch in batches:
        if batch.error:
            raise batch.error
        started = batch, _start_encoding(encoder, batch.pixels, device, policy)
        if latest:
            yield from packed(*latest)
        latest = started
    if latest:
        yield from packed(*latest)


def _not_finite(key: str, features: np.ndarray) -> str:
    if features.dtype == np.float16 and not np.isnan(features).any():  # rounding gives infinity
        return f"the features of {key} exceed what float16 holds; use --dtype float32"
    return (
        f"the features of {key} are not finite; the weights of the backbone may be damaged, or of "
        "a training that diverged"
    )


@torch.no_grad()
def _start_encoding(
    encoder: ImageEncoder, pixels: torch.Tensor, device: torch.device, policy: FeaturePolicy
) -> Callable[[], np.ndarray]:
    """Start the computation of features. The function returned waits for them, on a GPU."""
    features = encoder.features(pixels.to(device, non_blocking=True))
    numbers = features.to(getattr(torch, policy.dtype)).to("cpu", non_blocking=True)
    if device.type != "cuda":
        return numbers.numpy
    copied = torch.cuda.Event()
    copied.record()

    def finish() -> np.ndarray:
        copied.synchronize()
        return numbers.numpy()

    return finish


def _write_shard(job: FeatureJob, shard: int, samples: Iterable[Sample]) -> None:
    """Write one tar, then its sidecar."""
    members: list[Member] = []
    lengths: Counter[int] = Counter()
    num_unk = 0
    with atomic_file(job.tar(shard)) as file:
        with open_tar_for_writing(file) as tar:
            for _, key, features, meta in samples:
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
