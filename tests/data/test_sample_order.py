"""The sample order: complete, repeatable, and blind to how many processes read it."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, Scenes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from pipeline.data.partition import MicroBatchSampler, micro_batches, rank_of_slots
from pipeline.data.sample_order import (
    EMPTY_SLOT,
    Order,
    epoch_samples,
    global_batch,
    keyed_permutation,
    shards_needed,
)
from shards.format.index import read_index
from shards.format.names import image_id_of

shard_sizes = st.lists(st.integers(0, 60), min_size=1, max_size=20).map(tuple)
orders = st.builds(
    Order, shard_sizes, st.sampled_from(["a", "b"]), st.integers(0, 9), st.integers(1, 8),
    st.sampled_from([1, 1, 2, 3, 8]),
)  # fmt: skip


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


def test_ten_million_samples_start_at_once() -> None:
    code = """
import pathlib, re, time
import pipeline.data.sample_order as o
start = time.monotonic()
order = o.Order((1000,) * 10_000, "d", 0, 16, 8)
for step in (0, 100_000, 103_999):
    assert len(o.global_batch(order, step, 96, 10**7)) == 96
status = pathlib.Path("/proc/self/status").read_text()
print(time.monotonic() - start, re.search(r"VmHWM:\\s+(\\d+)", status)[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    seconds, kibibytes = map(float, done.stdout.split())
    assert seconds < 10
    assert kibibytes < 200 * 1024  # of the whole process


def print_order(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.order", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_command_prints_the_ids_of_any_step(scenes: Scenes) -> None:
    options = ("--shards", scenes.train, "--global-batch-size", 10, "--seed", 4, "--json")
    done = print_order(*options, "--steps", 7)
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    ids = [image_id for step in steps for image_id in step["ids"]]
    names = {image_id_of(read_index(scenes.train).key(n)) for n in range(63)}
    assert [step["step"] for step in steps] == list(range(7))
    assert set(ids[:63]) == names
    later = print_order(*options, "--steps", 1, "--first-step", 5)
    assert json.loads(later.stdout) == steps[5]
    nowhere = print_order("--shards", "nowhere")
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)
    assert "nowhere" in nowhere.stderr


@given(orders.filter(lambda order: order.num_samples > 0), st.integers(0, 9))
def test_a_resumed_sampler_goes_on_where_another_stopped(order: Order, first_step: int) -> None:
    def sampler(start: int) -> MicroBatchSampler:
        return MicroBatchSampler(order, 24, 240, start, 1, 2, 2)

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
    ("sizes", "block", "streams", "digest"),
    [
        ((7, 0, 5, 9), 2, 1, "8d52ebf46e28b6c69967d4fe1ada46cf347ff48ac87aceda430dd1b76a7f48f0"),
        ((100,) * 40, 16, 1, "626475311dd7e0bdb0c7f8b41c5141d21498da174b5e925ffd5dcd0a4c628a9d"),
        ((100,) * 40, 16, 8, "6ce8f821d8a5bd7bb06c13e550f3c672f783b7ef6e893c7543d11f582732aca1"),
        ((7, 0, 5, 9), 1, 2, "08d9ec7c042386db88b8dd8f5df9ffde03e1fc28389bd91f2765c39149ccc788"),
    ],
)
def test_the_order_never_changes_unnoticed(
    sizes: tuple, block: int, streams: int, digest: str
) -> None:
    """Golden hashes: a change here breaks the resuming of every run there is."""
    order = Order(sizes, "0123abcd", 7, block, streams)
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
    everything = range(order.streams)
    assert list(shards_needed(order, start, stop, everything)) == list(first_needs)
    own = data.draw(st.sets(st.sampled_from(everything)).map(sorted))
    needs = [
        int(owners[sample])
        for position, (_, sample) in zip(range(start, stop), slots, strict=True)
        if position % order.streams in own
    ]
    assert list(shards_needed(order, start, stop, own)) == list(dict.fromkeys(needs))
