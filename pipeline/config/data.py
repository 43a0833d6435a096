"""What is read, and how it is batched."""

from dataclasses import dataclass

MAX_STREAMS = 64  # more only cost memory: a run has one a machine at the least


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is batched.

    Args:
        train: folder of the training shards, a path or a URL such as s3://bucket/folder.
        val: folder of the validation shards, likewise; without one nothing is evaluated.
        global_batch_size: images a step, over all processes and accumulation steps.
        captions_per_image: captions an image, drawn anew each epoch where it has more.
        workers: loader processes of each training process; 0 loads in the process itself.
        image_size: side in pixels of the square that the encoder sees.
        min_crop: smallest side of a training crop, as a share of the picture's short side.
        shuffle_block: shards whose samples are mixed with each other.
        streams: canonical streams that the order deals the samples to, for shards on an object
            store: as many as machines the run will ever have, or a multiple of it, so that each
            fetches its own streams' shards alone; part of the order, so fixed for a run.
        max_bad: share of the samples, 0 to 1, that may prove damaged when they are read; each is
            named and left out, and more stop the run.
        cache_dir: where shards behind a URL lie while they are needed: a disk of this machine, not
            shared storage; none means a folder of yours in $TMPDIR, or in /var/tmp.
        cache_gb: the most that they may take there, in 10**9 bytes.
    """

    train: str = ""
    val: str | None = None
    global_batch_size: int = 48
    captions_per_image: int = 5
    workers: int = 2
    image_size: int = 224
    min_crop: float = 0.875
    shuffle_block: int = 16
    streams: int = 1
    max_bad: float = 0.001
    cache_dir: str | None = None
    cache_gb: float = 50.0
