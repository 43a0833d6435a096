"""Image files -> captions, batch by batch, each rank its share.

Images are cut into batches by their position in the list, and batch number b goes to rank b modulo
W. Captions do not depend on the batch or on the number of processes (generation/blocks.py).

B images, S side in pixels, W ranks
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pipeline.evaluation.caption_formats import ImageCaptions, image_id
from pipeline.evaluation.image_files import ImageList, decode_ahead
from pipeline.generation.blocks import generate
from pipeline.generation.trained import Trained
from pipeline.runtime.world import World

BATCH_SIZE = 64  # whole blocks of generation, on a CPU and on a GPU
MAX_THREADS = 8


@dataclass(frozen=True)
class CaptionedBatch:
    """One batch of this rank, without the images that had a caption already."""

    captions: list[ImageCaptions]
    unreadable: list[tuple[str, str]]  # path, reason


def caption_images(
    trained: Trained,
    device: torch.device,
    images: ImageList,
    world: World,
    captioned: Callable[[Sequence[str]], Sequence[bool]],
) -> Iterator[CaptionedBatch]:
    """Caption this rank's share of the images.

    Args:
        captioned: which of some paths have a caption already; these are left out.
    """
    captioner = trained.captioner.to(device).eval()
    generation = trained.config.generation
    several = generation.num_captions > 1
    paths_of_rank = _batches_of_rank(images, world, captioned)
    num_threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // world.local_world_size))
    for paths, decoded in decode_ahead(paths_of_rank, trained.config.data.image_size, num_threads):
        results = list(zip(paths, decoded, strict=True))
        readable = [(path, image) for path, image in results if isinstance(image, np.ndarray)]
        rows: list[ImageCaptions] = []
        if readable:
            pixels = torch.from_numpy(np.stack([image for _, image in readable])).to(device)
            ids = [image_id(Path(path).name) for path, _ in readable]  # wherever the image lies
            found = generate(captioner, pixels, ids, trained.tokenizer, generation)
            rows = [
                ImageCaptions(path, best.text, (best, *others) if several else ())
                for (path, _), (best, *others) in zip(readable, found, strict=True)
            ]
        yield CaptionedBatch(
            rows,
            [(path, str(error)) for path, error in results if isinstance(error, ValueError)],
        )


def _batches_of_rank(
    images: ImageList, world: World, captioned: Callable[[Sequence[str]], Sequence[bool]]
) -> Iterator[list[str]]:
    paths = iter(images)
    number = 0
    while batch := list(islice(paths, BATCH_SIZE)):
        if number % world.world_size == world.rank:
            done = captioned(batch)
            yield [path for path, is_done in zip(batch, done, strict=True) if not is_done]
        number += 1
