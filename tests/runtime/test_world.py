"""Ranks and machines, as the launcher numbers them."""

import os

import pytest

from pipeline.runtime.world import World, read_world


def test_a_process_alone_is_the_whole_world() -> None:
    world = read_world({})
    assert (world.rank, world.local_rank, world.world_size) == (0, 0, 1)
    assert world.is_main
    assert world.is_local_main
    assert list(world.ranks_of_this_machine) == [0]
    assert world.launcher_pid == os.getppid()


def test_a_process_of_the_second_of_two_machines() -> None:
    world = read_world(
        {
            "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4",
            "TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_MAX_RESTARTS": "3",
            "MASTER_ADDR": "first", "MASTER_PORT": "29500",
        }
    )  # fmt: skip
    assert list(world.ranks_of_this_machine) == [4, 5, 6, 7]
    assert not world.is_main
    assert not world.is_local_main
    assert (world.restart, world.max_restarts) == (2, 3)
    assert (world.store_host, world.store_port) == ("first", 29500)


def test_local_rank_0_of_another_machine_is_not_the_main_process() -> None:
    world = World(rank=4, local_rank=0, world_size=8, local_world_size=4)
    assert world.is_local_main
    assert not world.is_main


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"])
def test_a_variable_that_is_no_number_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: .* whole number, not `two`"):
        read_world({name: "two"})
    assert read_world({name: ""}) == read_world({})
