"""The sample order: complete, repeatable, and blind to how many processes read it."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.orders import orders
from support.repository import ROOT

from pipeline.data.sample_order import (
    Order,
    epoch_samples,
    global_batch,
    keyed_permutation,
    shards_needed,
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
