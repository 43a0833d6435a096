"""Two machines, played by two network namespaces with a cable between them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes
from support.training import epochs, read_sample_log, tiny_settings, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

NUM_STEPS = 60
SETTINGS = (
    "--train.steps", NUM_STEPS, "--train.epochs", "null",
    "--train.checkpoint_every_epochs", epochs(5), "--monitor.log_every", 1, "--data.workers", 1,
)  # fmt: skip


def ip(*arguments: object) -> None:
    subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """The names of two namespaces, in each of which the cable is called `cable`."""
    names = [f"capstream-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth",
           "peer", "name", "cable", "netns", names[1])  # fmt: skip
        for number, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", "cable")
            for link in ("lo", "cable"):
                ip("-n", name, "link", "set", link, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        pytest.skip(f"network namespaces cannot be made here: {error}")
    yield names
    for name in names:
        ip("netns", "delete", name)


def start(machines: list[str], *settings: object) -> list[psutil.Popen]:
    """One process on each machine, as its user would launch it there."""
    launched = []
    for number, name in enumerate(machines):
        command = [
            "ip", "netns", "exec", name, sys.executable, "-m", "launch",
            "--config_file", "launch/cpu.yaml", "--num_machines", "2", "--num_processes", "2",
            "--machine_rank", number, "--main_process_ip", "10.77.0.1",
            "--main_process_port", "29511", "train.py",
            *tiny_settings(*SETTINGS, *settings),
        ]  # fmt: skip
        launched.append(
            psutil.Popen(
                list(map(str, command)), cwd=ROOT, text=True,
                env={**ONE_THREAD, "GLOO_SOCKET_IFNAME": "cable"},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    return launched


def losses(run: Path) -> list[float]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [point.value for point in events.Scalars("train/loss")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{NUM_STEPS:08d}" / "model.safetensors")


def test_two_machines_train_as_one_and_survive_a_cut_cable(
    scenes: Scenes, tmp_path: Path, machines: list[str]
) -> None:
    shared = ("--data.train", scenes.train)
    one = train(2, *shared, *SETTINGS, "--run_dir", tmp_path / "one",
                "--monitor.sample_log", tmp_path / "one-log")  # fmt: skip
    assert one.returncode == 0, one.stderr
    pair = start(machines, *shared, "--run_dir", tmp_path / "two",
                 "--monitor.sample_log", tmp_path / "two-log")  # fmt: skip
    for process in pair:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert read_sample_log(tmp_path / "two-log") == read_sample_log(tmp_path / "one-log")

    cut = ("--run_dir", tmp_path / "cut", "--monitor.sample_log", tmp_path / "cut-log")
    pair = start(machines, *shared, *cut)
    log = tmp_path / "cut-log.rank0.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 8):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in pair)
        time.sleep(0.01)
    ip("-n", machines[0], "link", "set", "cable", "down")
    began = time.monotonic()
    outputs = [process.communicate(timeout=100)[0] for process in pair]
    assert time.monotonic() - began < 60
    assert all(process.returncode not in (0, 2, 85) for process in pair)
    assert "rank 1" in outputs[0], outputs[0]
    assert "has sent no heartbeat" in outputs[0], outputs[0]
    assert "that machine is gone or cut off" in outputs[1], outputs[1]

    ip("-n", machines[0], "link", "set", "cable", "up")
    pair = start(machines, *shared, *cut)
    for process in pair:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    assert read_sample_log(tmp_path / "cut-log") == read_sample_log(tmp_path / "one-log")
    expected = weights(tmp_path / "one")
    assert all(torch.equal(found, expected[n]) for n, found in weights(tmp_path / "cut").items())
