"""Which ranks of a run share this machine."""

import os


def ranks_of_this_machine(rank: int) -> range:
    """The ranks that share a machine with `rank`: the launcher numbers them one after the other."""
    first = rank - int(os.environ.get("LOCAL_RANK", "0"))
    return range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
