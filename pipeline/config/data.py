"""Settings of the data and its batches."""

from dataclasses import dataclass
from typing import Literal

MAX_STREAMS = 64  # a run needs as many as it has machines; more only cost memory


@dataclass(frozen=True)
class DataConfig:
    """The data and its batches.

    Args:
        train: folder of the training shards, a path or a URL such as s3://bucket/folder.
        val: folder of the validation shards, a path or a URL; null for no evaluation.
        global_batch_size: images of a step, over all processes and accumulation steps.
        captions_per_image: largest number of captions of an image that an epoch uses. If an image
            has more, each epoch chooses some of them at random.
        workers: loader workers of each training process; 0 loads in the process itself.
        image_size: side in pixels of the square that the encoder sees.
        crop: square of a training image that the encoder sees: `random`, or `center` as in
            evaluation. Stored features have their own.
        min_crop: smallest side of a random training crop, as a fraction of the short side of the
            image; 1 keeps the whole short side and cuts the long side to the same
            length.
        shuffle_block: number of shards whose samples are shuffled together.
        streams: number of canonical streams of the sample order. For shards on an object store, set
            it to the largest number of machines that the run will ever have, or to a multiple of
            it; each machine then fetches the shards of its own streams only, if the number of
            processes divides `streams` or is a multiple of it. It is part of the sample order and
            cannot change during a run.
        max_bad: largest fraction of bad samples, 0 to 1. Each bad sample is reported and left out.
            If there are more of them, the run stops.
        cache_dir: folder for shards that were fetched from a URL. Use a disk of this machine, not
            shared storage. Null for a folder of yours in $TMPDIR or /var/tmp.
        cache_gb: largest size of that cache, in 10**9 bytes.
    """

    train: str = ""
    val: str | None = None
    global_batch_size: int = 48
    captions_per_image: int = 5
    workers: int = 2
    image_size: int = 224
    crop: Literal["random", "center"] = "random"
    min_crop: float = 0.875
    shuffle_block: int = 16
    streams: int = 1
    max_bad: float = 0.001
    cache_dir: str | None = None
    cache_gb: float = 50.0
