"""Which rank reads what: the ranks together read the global batches of one process."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.orders import orders
from torch.utils.data import DataLoader, Dataset

from pipeline.data.partition import MicroBatchSampler, micro_batches, rank_of_slots
from pipeline.data.sample_order import (
    EMPTY_SLOT,
    Order,
    global_batch,
)


def dealt_again(
    order: Order, step: int, batch_size: int, num_slots: int, world_size: int, parts: int
) -> list[tuple[int, int]]:
    """The slots of a global batch, put together again from what every rank gets of it."""
    slots = global_batch(order, step, batch_size, num_slots)
    shares = [
        np.concatenate(micro_batches(slots, rank, world_size, parts, order.streams))
        for rank in range(world_size)
    ]
    micro_size = -(-batch_size // (world_size * parts))
    assert {len(share) for share in shares} == {micro_size * parts}
    ranks = rank_of_slots(batch_size, world_size, order.streams)
    dealt = np.full((batch_size, 2), EMPTY_SLOT)
    for rank, share in enumerate(shares):
        mine = int((ranks == rank).sum())
        dealt[ranks == rank] = share[:mine]
        assert (share[mine:] == EMPTY_SLOT).all()
    return [(epoch, sample) for epoch, sample in dealt.tolist() if sample != EMPTY_SLOT]


def check_case(sizes: tuple[int, ...], rng: np.random.Generator) -> None:
    """One random run: whatever the ranks and the accumulation, the batches are one process's."""
    streams = int(rng.choice([1, 1, 2, 4, 8]))
    batch_size = int(rng.integers(1, 25)) * streams
    order = Order(sizes, "d", int(rng.integers(9)), int(rng.integers(1, 20)), streams)
    epochs = int(rng.integers(1, 4)) if order.num_samples < 200 else 1
    num_slots = epochs * order.num_samples
    seen = []
    for step in range(-(-num_slots // batch_size)):
        world_size, parts = int(rng.integers(1, 17)), int(rng.integers(1, 9))
        alone = global_batch(order, step, batch_size, num_slots).tolist()
        dealt = dealt_again(order, step, batch_size, num_slots, world_size, parts)
        assert dealt == [(epoch, sample) for epoch, sample in alone if sample != EMPTY_SLOT]
        seen += dealt
    for epoch in range(epochs):
        one = seen[epoch * order.num_samples : (epoch + 1) * order.num_samples]
        assert sorted(one) == [(epoch, sample) for sample in range(order.num_samples)]


def random_sizes(rng: np.random.Generator) -> tuple[int, ...]:
    """1 to 64 shards, uneven and some of them empty, 1 to 5,000 samples: mostly few."""
    num_samples = int(min(5000, rng.pareto(0.7) * 20 + 1))
    cuts = np.sort(rng.integers(0, num_samples + 1, rng.integers(0, 64)))
    return tuple(np.diff([0, *cuts, num_samples]).tolist())


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cases", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_ranks_and_accumulation_only_deal_the_same_batches_out(cases: int) -> None:
    for case in range(cases):
        rng = np.random.default_rng(case)
        check_case(random_sizes(rng), rng)


@settings(max_examples=500)
@given(orders, st.integers(1, 9), st.integers(0, 40), st.data())
def test_chains_of_resumes_on_other_numbers_of_ranks_go_on_in_order(
    order: Order, per_stream: int, num_steps: int, data: st.DataObject
) -> None:
    """W1 -> W2 -> W3 and on, compared unsorted with a run that never stopped.

    Of the stops, at any step, two or more are in one epoch.
    """
    batch_size = per_stream * order.streams
    num_slots = num_steps * batch_size if order.num_samples else 0
    whole = [
        global_batch(order, step, batch_size, num_slots).tolist()
        for step in range(num_steps if order.num_samples else 0)
    ]
    first = data.draw(st.integers(0, len(whole)))
    epoch_end = (first * batch_size // order.num_samples + 1) * order.num_samples if whole else 0
    second = data.draw(st.integers(first, min(max(first, epoch_end // batch_size), len(whole))))
    more = data.draw(st.lists(st.integers(0, len(whole)), max_size=3))
    stops = sorted([first, second, *more])
    chained = []
    for start, stop in zip([0, *stops], [*stops, len(whole)], strict=True):
        world_size, parts = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 8))
        samplers = [
            iter(MicroBatchSampler(order, batch_size, num_slots, start, rank, world_size, parts))
            for rank in range(world_size)
        ]  # fmt: skip
        ranks = rank_of_slots(batch_size, world_size, order.streams)
        for _ in range(start, stop):
            batch = np.empty((batch_size, 2), np.int64)
            for rank, sampler in enumerate(samplers):
                share = np.concatenate([next(sampler) for _ in range(parts)])
                batch[ranks == rank] = share[: (ranks == rank).sum()]
            chained.append(batch.tolist())
    assert chained == whole


@pytest.mark.parametrize("workers", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_loader_processes_keep_the_order(workers: int) -> None:
    sampler = MicroBatchSampler(Order((30, 7, 0, 20), "d", 3, 2, 2), 8, 171, 0, 1, 2, 2)
    loader = DataLoader(Echo(), sampler=sampler, batch_size=None, num_workers=workers)
    assert [part.tolist() for part in loader] == [part.tolist() for part in sampler]


class Echo(Dataset):
    """Gives back the slots that it is asked for."""

    def __getitem__(self, slots: np.ndarray) -> np.ndarray:
        return slots


def test_ranks_read_the_shards_of_their_own_streams() -> None:
    """What streams are for: two machines of two ranks fetch half of the shards each."""
    order = Order((50,) * 40, "d", 0, 4, 2)
    shards: list[set[int]] = [set(), set()]
    for step in range(50):
        slots = global_batch(order, step, 40, 2000)
        for rank in range(4):
            samples = np.concatenate(micro_batches(slots, rank, 4, 1, 2))[:, 1]
            shards[rank // 2] |= set((samples // 50).tolist())
    assert len(shards[0]) == len(shards[1]) == 20
    assert not shards[0] & shards[1]


@given(orders.filter(lambda order: order.num_samples > 0), st.integers(0, 9))
def test_a_resumed_sampler_goes_on_where_another_stopped(order: Order, first_step: int) -> None:
    def sampler(start: int) -> MicroBatchSampler:
        return MicroBatchSampler(order, 24, 240, start, 1, 2, 2)

    whole, rest = list(sampler(0)), list(sampler(first_step))
    assert len(whole) == len(sampler(0)) == 20
    assert [part.tolist() for part in whole[2 * first_step :]] == [part.tolist() for part in rest]
