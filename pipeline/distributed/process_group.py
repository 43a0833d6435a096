"""Joins the processes of a run with accelerate: NCCL between GPUs, gloo between CPU processes."""

import os
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # with gloo

from pipeline.runtime.world import World

JOIN_LIMIT_S = 900.0  # a scheduler may start the machines of a run minutes apart

# Longer than anything the watchdog lets a process wait for, such as scoring on another rank. The
# watchdog finds a hang sooner, and names the rank.
COLLECTIVE_TIMEOUT = timedelta(hours=2)


def join_processes(world: World, precision: str = "fp32", some_unused: bool = False) -> Accelerator:
    """Join the process group that the launcher prepared, if there is one.

    Args:
        precision: `fp32`, `bf16` or `fp16`. On a CPU float32 is used for all of them: some CPU
            kernels have no bf16 form, and others are very slow in it.
        some_unused: whether some trained parameters get no gradients in some steps.
    Raises:
        RuntimeError: the launcher started several processes that cannot be joined.
    """
    joined = threading.Event()
    if world.world_size > 1:
        threading.Thread(target=_end_unless_joined, args=(world, joined), daemon=True).start()
    on_cpu = runs_on_cpu()
    _join_after_restart(world, "gloo" if on_cpu else "nccl")
    accelerator = Accelerator(
        # accelerate 1.15 joins CPU processes only if it is told that they are on a CPU.
        cpu=on_cpu,
        mixed_precision="no" if on_cpu or precision == "fp32" else precision,
        # training/step.py accumulates itself: accelerate's backward() divides by the steps.
        gradient_accumulation_steps=1,
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                gradient_as_bucket_view=True, find_unused_parameters=some_unused
            ),
            InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
        ],
    )
    joined.set()
    if accelerator.num_processes != world.world_size:
        raise RuntimeError(
            f"the launcher started {world.world_size} processes, but accelerate joined "
            f"{accelerator.num_processes}; launch with a configuration from launch/"
        )
    return accelerator


def runs_on_cpu() -> bool:
    """Whether the processes compute on a CPU: for want of a GPU, or as the launcher asks.

    launch/cpu.yaml and `--cpu` mean the CPU also on a machine with GPUs.
    """
    asked: bool = parse_flag_from_env("ACCELERATE_USE_CPU")
    return asked or not torch.cuda.is_available()


def _end_unless_joined(world: World, joined: threading.Event) -> None:
    """End this process if the others do not join in time: the group alone would wait for hours."""
    start = time.monotonic()
    while not joined.wait(1.0):
        if os.getppid() != world.launcher_pid:
            why = "the launcher is gone"
        elif time.monotonic() - start > JOIN_LIMIT_S:
            why = (
                f"the {world.world_size} processes have not found each other within "
                f"{JOIN_LIMIT_S:.0f} s: one has not started, or cannot reach "
                f"{world.store_host}:{world.store_port}"
            )
        else:
            continue
        try:
            print(f"rank {world.rank}: {why}; ending", file=sys.stderr, flush=True)
        finally:  # also where nobody reads what is printed
            os._exit(1)


def _join_after_restart(world: World, backend: str) -> None:
    """After a restart (`--max_restarts`) form the group under a name of its own.

    torch's static rendezvous, which accelerate uses, keeps one store through all restarts (seen
    with 2.15). The addresses of the ended processes are still in it, and the new processes would
    connect to those.
    """
    if not world.restart or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    torch.distributed.init_process_group(
        backend,
        timeout=COLLECTIVE_TIMEOUT,
        store=PrefixStore(f"restart {world.restart}", launcher_store(world)),
        rank=world.rank,
        world_size=world.world_size,
    )


def launcher_store(world: World) -> Any:
    """A new connection to the key-value store that the launcher keeps.

    Raises:
        RuntimeError: the store does not answer.
    """
    return TCPStore(
        world.store_host,
        world.store_port,
        is_master=False,
        timeout=timedelta(seconds=60),
        wait_for_workers=False,
    )
