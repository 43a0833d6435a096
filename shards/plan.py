"""Which record goes into which shard: a pure function of the records' keys."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise


def plan_shards(keys: Sequence[str], samples_per_shard: int) -> list[list[int]]:
    """Deal records to shards.

    Records are dealt in the order of a hash of their key, so each shard is a fair draw of the whole
    data set however the source was sorted, and shuffling a few shards at a time mixes everything.
    Shards differ by one record at the most.

    Args:
        keys: one sample key a record, all different.
        samples_per_shard: the most records a shard may hold.
    Returns:
        For each shard the positions in `keys` of its records.
    Raises:
        ValueError: a key stands twice, or the shard size is not positive.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples per shard must be 1 or more, not {samples_per_shard}")
    twice = sorted(key for key, count in Counter(keys).items() if count > 1)
    if twice:
        raise ValueError(f"image ids stand more than once: {', '.join(twice[:3])}")
    order = sorted(
        range(len(keys)), key=lambda i: hashlib.blake2b(keys[i].encode(), digest_size=16).digest()
    )
    num_shards = -(-len(keys) // samples_per_shard)
    cuts = [len(keys) * shard // max(num_shards, 1) for shard in range(num_shards + 1)]
    return [order[start:stop] for start, stop in pairwise(cuts)]
