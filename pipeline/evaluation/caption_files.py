"""Image files -> captions, batch by batch, each rank its share.

Images are cut into batches by their position in the list, and batch number b goes to rank b modulo
W. A batch thus has the same images for any number of processes, and so the same captions to the
last bit.

B images, S side in pixels, W ranks
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from pipeline.evaluation.image_files import ImageList, decode_ahead
from pipeline.generation.trained import Trained, generate
from pipeline.runtime.world import World

BATCH_SIZE = 32
MAX_THREADS = 8


@dataclass(frozen=True)
class CaptionedBatch:
    """One batch of this rank, without the images that had a caption already."""

    captions: list[tuple[str, str]]  # path, caption
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
    paths_of_rank = _batches_of_rank(images, world, captioned)
    num_threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // world.local_world_size))
    for paths, decoded in decode_ahead(paths_of_rank, trained.config.data.image_size, num_threads):
        results = list(zip(paths, decoded, strict=True))
        readable = [(path, image) for path, image in results if isinstance(image, np.ndarray)]
        captions: list[str] = []
        if readable:
            pixels = torch.from_numpy(np.stack([image for _, image in readable])).to(device)
            captions = generate(
                captioner, pixels, trained.tokenizer, trained.config.model.max_tokens
            )
        yield CaptionedBatch(
            [(path, text) for (path, _), text in zip(readable, captions, strict=True)],
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
