"""What processes that read through a cache do; without torch, so that they start at once."""

import hashlib
import multiprocessing
import os
import random

from pipeline.remote.cache import ShardCache


def is_right(cache: ShardCache, number: int) -> bool:
    with open(cache.open(number), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == cache.shards[number].sha256


def read_many(cache: ShardCache, seed: int, results: "multiprocessing.Queue[bool]") -> None:
    rng = random.Random(seed)
    numbers = [rng.randrange(len(cache.shards)) for _ in range(25)]
    results.put(all(is_right(cache, number) for number in numbers))


def fetch_only(cache: ShardCache, number: int) -> None:
    os.close(cache.open(number))
