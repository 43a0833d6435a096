"""Which records go into which shard."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.names import key_of
from shards.plan import plan_shards


@given(st.sets(st.integers(0, 10**6), max_size=200), st.integers(1, 50))
def test_each_record_goes_into_one_shard(ids: set[int], samples_per_shard: int) -> None:
    keys = [key_of(i) for i in ids]
    plan = plan_shards(keys, samples_per_shard)
    assert sorted(position for shard in plan for position in shard) == list(range(len(keys)))
    sizes = [len(shard) for shard in plan]
    assert max(sizes, default=0) <= samples_per_shard
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@given(st.permutations(range(40)))
def test_the_plan_does_not_depend_on_the_order_of_the_source(order: list[int]) -> None:
    keys = [key_of(i) for i in order]
    dealt = [[keys[i] for i in shard] for shard in plan_shards(keys, 7)]
    sorted_keys = sorted(keys)
    assert dealt == [[sorted_keys[i] for i in shard] for shard in plan_shards(sorted_keys, 7)]


def test_a_repeated_key_is_named() -> None:
    with pytest.raises(ValueError, match="000000000002"):
        plan_shards([key_of(i) for i in (1, 2, 2)], 10)
