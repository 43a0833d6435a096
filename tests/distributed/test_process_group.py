"""Joining the processes of a run: which device they use."""

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from pipeline.distributed import process_group
from pipeline.runtime.world import World


@pytest.mark.parametrize("asked", ["true", "True", "1"])
def test_a_launcher_that_asks_for_the_cpu_gets_it_also_beside_gpus(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    made: list[dict[str, object]] = []

    class Made:
        num_processes = 1

        def __init__(self, **options: object) -> None:
            made.append(options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(process_group, "Accelerator", Made)
    monkeypatch.setenv("ACCELERATE_USE_CPU", asked)
    process_group.join_processes(World(), "bf16")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    process_group.join_processes(World(), "bf16")
    assert [(options["cpu"], options["mixed_precision"]) for options in made] == [
        (True, "no"), (False, "bf16"),
    ]  # fmt: skip


def test_on_a_cpu_mixed_precision_keeps_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = process_group.join_processes(World(), "bf16")
    assert accelerator.device.type == "cpu"
    assert accelerator.mixed_precision == "no"
    PartialState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)
