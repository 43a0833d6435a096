"""Fixtures of the tests of several processes: a launcher's store on loopback."""

import itertools
import os
from collections.abc import Callable
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

import pipeline.distributed.heartbeats
from pipeline.runtime.world import World

RUNS = itertools.count()


@pytest.fixture(scope="session")
def store() -> TCPStore:
    """The key-value store that a launcher keeps for its processes."""
    limit = timedelta(seconds=20)
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)


@pytest.fixture
def make_world(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Makes the world of a rank of a new run; its heartbeats come every 20 ms."""
    monkeypatch.setattr(pipeline.distributed.heartbeats, "HEARTBEAT_S", 0.02)
    run = 10 * next(RUNS)  # its keys in the store are not those of the other tests

    def make(rank: int, world_size: int = 2, restart: int = 0) -> World:
        return World(
            rank=rank, local_rank=rank, world_size=world_size, local_world_size=world_size,
            restart=run + restart, launcher_pid=os.getppid(),
            store_host="127.0.0.1", store_port=store.port,
        )  # fmt: skip

    return make
