"""Which record goes into which shard: a pure function of the sample keys."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise


def plan_shards(keys: Sequence[str], samples_per_shard: int) -> list[list[int]]:
    """Distribute records over shards.

    Records are taken in the order of a hash of their keys. So each shard is a random draw from the
    whole data set, however the source was sorted, and shuffling a few shards at a time is enough.
    The numbers of records in two shards differ by at most one.

    Args:
        keys: one sample key for each record, all different.
        samples_per_shard: the largest number of records in a shard.
    Returns:
        For each shard, the positions of its records in `keys`.
    Raises:
        ValueError: a key occurs twice, or the shard size is not positive.
    """
    if samples_per_shard < 1:
        raise ValueError(f"--samples_per_shard must be 1 or more, not {samples_per_shard}")
    twice = sorted(key for key, count in Counter(keys).items() if count > 1)
    if twice:
        raise ValueError(f"image ids occur more than once: {', '.join(twice[:3])}")
    order = sorted(
        range(len(keys)), key=lambda i: hashlib.blake2b(keys[i].encode(), digest_size=16).digest()
    )
    num_shards = -(-len(keys) // samples_per_shard)
    cuts = [len(keys) * shard // max(num_shards, 1) for shard in range(num_shards + 1)]
    return [order[start:stop] for start, stop in pairwise(cuts)]
