"""The sample order: complete, repeatable, and blind to how many processes read it."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order import (
    EMPTY_SLOT,
    MicroBatchSampler,
    Order,
    epoch_samples,
    global_batch,
    keyed_permutation,
    micro_batches,
    shards_needed,
)

shard_sizes = st.lists(st.integers(0, 60), min_size=1, max_size=20).map(tuple)
orders = st.builds(
    Order, shard_sizes, st.sampled_from(["a", "b"]), st.integers(0, 9), st.integers(1, 8)
)


@given(orders, st.integers(0, 3))
def test_an_epoch_holds_each_sample_once(order: Order, epoch: int) -> None:
    samples = epoch_samples(order, epoch, 0, order.num_samples)
    assert sorted(samples.tolist()) == list(range(order.num_samples))


@given(orders, st.integers(0, 2), st.data())
def test_any_piece_of_an_epoch_is_that_piece_of_the_whole(
    order: Order, epoch: int, data: st.DataObject
) -> None:
    whole = epoch_samples(order, epoch, 0, order.num_samples)
    start = data.draw(st.integers(0, order.num_samples))
    stop = data.draw(st.integers(start, order.num_samples))
    assert epoch_samples(order, epoch, start, stop).tolist() == whole[start:stop].tolist()


@given(
    orders.filter(lambda order: order.num_samples > 0),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 16),
    st.integers(1, 8),
)
@settings(max_examples=300)
def test_ranks_and_accumulation_only_deal_the_same_batches_out(
    order: Order, batch_size: int, epochs: int, world_size: int, steps: int
) -> None:
    num_slots = epochs * order.num_samples
    seen = []
    for step in range(-(-num_slots // batch_size)):
        slots = global_batch(order, step, batch_size, num_slots)
        shares = [micro_batches(slots, rank, world_size, steps) for rank in range(world_size)]
        assert {len(part) for share in shares for part in share} == {
            -(-batch_size // (world_size * steps))
        }
        ranks = np.stack([np.concatenate(share) for share in shares])  # (W, A*M, 2)
        dealt = ranks.transpose(1, 0, 2).reshape(-1, 2)  # back in slot order
        assert dealt[:batch_size].tolist() == slots.tolist()
        assert (dealt[batch_size:] == EMPTY_SLOT).all()
        seen += [tuple(slot) for slot in slots.tolist() if slot[1] != EMPTY_SLOT]
    assert sorted(seen) == [(e, s) for e in range(epochs) for s in range(order.num_samples)]


@given(orders.filter(lambda order: order.num_samples > 0), st.integers(0, 9))
def test_a_resumed_sampler_goes_on_where_another_stopped(order: Order, first_step: int) -> None:
    def sampler(start: int) -> MicroBatchSampler:
        return MicroBatchSampler(order, 4, 40, start, 10, 1, 2, 2)

    whole, rest = list(sampler(0)), list(sampler(first_step))
    assert len(whole) == len(sampler(0)) == 20
    assert [part.tolist() for part in whole[2 * first_step :]] == [part.tolist() for part in rest]


def test_other_seeds_epochs_and_data_give_other_orders() -> None:
    sizes = (50, 50)
    base = epoch_samples(Order(sizes, "a", 0, 2), 0, 0, 100).tolist()
    others = [
        epoch_samples(Order(sizes, "a", 0, 2), 1, 0, 100).tolist(),
        epoch_samples(Order(sizes, "a", 1, 2), 0, 0, 100).tolist(),
        epoch_samples(Order(sizes, "b", 0, 2), 0, 0, 100).tolist(),
    ]
    assert base != list(range(100))
    assert all(base != other for other in others)


def test_permutations_are_uniform() -> None:
    counts = np.zeros((5, 5))
    for trial in range(4000):
        counts[np.arange(5), keyed_permutation(5, trial)] += 1
    assert abs(counts / 4000 - 0.2).max() < 0.03  # five standard deviations


@pytest.mark.parametrize(
    ("sizes", "block", "digest"),
    [
        ((7, 0, 5, 9), 2, "8d52ebf46e28b6c69967d4fe1ada46cf347ff48ac87aceda430dd1b76a7f48f0"),
        ((100,) * 40, 16, "626475311dd7e0bdb0c7f8b41c5141d21498da174b5e925ffd5dcd0a4c628a9d"),
    ],
)
def test_the_order_never_changes_unnoticed(sizes: tuple, block: int, digest: str) -> None:
    """Golden hashes: a change here breaks the resuming of every run there is."""
    order = Order(sizes, "0123abcd", 7, block)
    slots = [global_batch(order, step, 8, 3 * order.num_samples) for step in range(6)]
    assert hashlib.sha256(np.concatenate(slots).astype("<i8").tobytes()).hexdigest() == digest


@given(orders, st.data())
def test_shards_are_needed_in_the_order_in_which_samples_first_read_them(
    order: Order, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, 2 * order.num_samples))
    stop = data.draw(st.integers(start, 3 * order.num_samples))
    owners = np.repeat(np.arange(len(order.shard_sizes)), order.shard_sizes)
    slots = [global_batch(order, position, 1, stop)[0] for position in range(start, stop)]
    first_needs = dict.fromkeys(int(owners[sample]) for _, sample in slots)
    assert list(shards_needed(order, start, stop)) == list(first_needs)
