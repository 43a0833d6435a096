"""What every loader is measured with: the same batches, the same decoding, the same counting.

This file does not import Capstream, so that peers in a separate environment can use it too.
"""

import random
import statistics
import time
from collections.abc import Iterator

import cv2
import numpy as np
import psutil
import simplejpeg

BATCH_SIZE = 48
SIZE = 224
MIN_CROP = 0.875
WARM_UP_BATCHES = 24  # more than lie ready when a loader has filled its queues


def decode_and_crop(jpeg: bytes, out: np.ndarray) -> None:
    """Decode an image and write a random crop of it, resized, into `out`: the bare work.

    Draws come from the process's own `random`, which torch seeds in each of its workers.
    """
    pixels = simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=True, fastupsample=True)
    height, width = pixels.shape[:2]
    side = round(min(height, width) * random.uniform(MIN_CROP, 1.0))
    top, left = random.randint(0, height - side), random.randint(0, width - side)
    crop = pixels[top : top + side, left : left + side]
    cv2.resize(crop, (SIZE, SIZE), dst=out, interpolation=cv2.INTER_LINEAR)


def consume(batches: Iterator[int], workers: int, seconds: float) -> tuple[float, dict[str, float]]:
    """Take batches as fast as they come, after the first ones, which were prepared in advance.

    Args:
        batches: their sizes.
    Returns:
        Images/s, and the workers' memory by its title.
    """
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    num_images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        num_images += next(batches)
    processes = psutil.Process().children(recursive=True)  # also the server that forks ours
    processes.sort(key=psutil.Process.create_time)
    private = statistics.median(p.memory_full_info().uss for p in processes[-workers:])
    batches.close()  # ends the workers
    return num_images / elapsed, {"private MB a worker": private / 1e6}
