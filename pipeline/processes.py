"""The processes of a run, joined by accelerate: NCCL between GPUs, gloo between CPU processes."""

import os

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs


def join_processes(precision: str = "fp32") -> Accelerator:
    """Join the process group that the launcher laid out, if any.

    Args:
        precision: `fp32`, `bf16` or `fp16`. A CPU keeps to float32: there some kernels have no bf16
            form, and others crawl.
    Raises:
        RuntimeError: the launcher started several processes that cannot be joined.
    """
    on_cpu = not torch.cuda.is_available()
    accelerator = Accelerator(
        # Left to itself, accelerate 1.15 joins CPU processes only if told that they are on a CPU.
        cpu=on_cpu,
        mixed_precision="no" if on_cpu or precision == "fp32" else precision,
        # Accumulation is ours (step.py): accelerate's divides by its steps in backward().
        gradient_accumulation_steps=1,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RuntimeError(
            f"the launcher started {launched} processes, but accelerate joined "
            f"{accelerator.num_processes}; launch with a configuration from launch/"
        )
    return accelerator
