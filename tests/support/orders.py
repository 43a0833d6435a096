"""Hypothesis strategies for sample orders."""

from hypothesis import strategies as st

from pipeline.data.sample_order import (
    Order,
)

shard_sizes = st.lists(st.integers(0, 60), min_size=1, max_size=20).map(tuple)
orders = st.builds(
    Order, shard_sizes, st.sampled_from(["a", "b"]), st.integers(0, 9), st.integers(1, 8),
    st.sampled_from([1, 1, 2, 3, 8]),
)  # fmt: skip
