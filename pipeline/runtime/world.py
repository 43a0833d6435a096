"""The processes of a run as the launcher started them: read from the environment once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """Where this process stands among the processes of its run.

    Args:
        rank: number of this process in the run, from 0.
        local_rank: number of this process on its machine, from 0.
        world_size: processes of the run.
        local_world_size: processes of the run on this machine.
        restart: how many times the launcher has started the processes again (`--max_restarts`).
        max_restarts: how many times it may.
        launcher_pid: process id of the launcher, which is the parent of this process.
        store_host: host of the launcher's key-value store.
        store_port: port of that store.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    restart: int = 0
    max_restarts: int = 0
    launcher_pid: int = 0
    store_host: str = ""
    store_port: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes checkpoints and logs."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Whether this is local rank 0, which does what is needed once on each machine."""
        return self.local_rank == 0

    @property
    def ranks_of_this_machine(self) -> range:
        """The ranks on this machine. The launcher numbers the ranks of a machine consecutively."""
        first = self.rank - self.local_rank
        return range(first, first + self.local_world_size)


def read_world(environment: Mapping[str, str] = os.environ) -> World:
    """Read what the launcher said to this process; without a launcher, one process alone.

    Call it first in a program: the parent process is certainly the launcher then.

    Raises:
        ValueError: a variable that must hold a whole number does not.
    """

    def number(name: str, default: int) -> int:
        text = environment.get(name) or str(default)  # an empty variable counts as unset
        try:
            return int(text)
        except ValueError:
            raise ValueError(
                f"{name}: the environment variable must be a whole number, not `{text}`; unset it, "
                "or start the processes with a launcher, which sets it"
            ) from None

    return World(
        rank=number("RANK", 0),
        local_rank=number("LOCAL_RANK", 0),
        world_size=number("WORLD_SIZE", 1),
        local_world_size=number("LOCAL_WORLD_SIZE", 1),
        restart=number("TORCHELASTIC_RESTART_COUNT", 0),
        max_restarts=number("TORCHELASTIC_MAX_RESTARTS", 0),
        launcher_pid=os.getppid(),
        store_host=environment.get("MASTER_ADDR", ""),
        store_port=number("MASTER_PORT", 0),
    )
