"""What only a GPU shows: mixed precision, NCCL, kernels, and the same results as on a CPU."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.repository import ROOT
from support.shards import Scenes
from support.training import read_sample_log, tiny_settings, train

from pipeline.checkpoint.commit import load_model_state
from pipeline.checkpoint.folder import list_checkpoints
from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.data.batch import Batch, collate_captions
from pipeline.model.captioner import Captioner
from pipeline.model.decoders import DECODERS
from pipeline.objectives.cross_entropy import CrossEntropy, Inputs
from pipeline.runtime.preemption import STOPPED
from shards.tokenizer import PAD

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

PRECISIONS = ("fp32", "bf16", "fp16")


@pytest.fixture
def plain_float32() -> Iterator[None]:
    """Float32 products in float32, and the same kernels each time."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_trains(scenes: Scenes, tmp_path: Path, precision: str) -> None:
    done = train(
        1, "--data.train", scenes.train, "--run_dir", tmp_path, "--train.steps", 40,
        "--train.precision", precision, "--monitor.log_every", 5, "--data.workers", 2, on_gpu=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"on cuda; precision {precision};" in done.stdout
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert losses[-1] < losses[0]


def gpu_command(*settings: object, launched: bool = False) -> list[str]:
    """A tiny training on one GPU; launched, it joins a process group of NCCL."""
    launcher = ("-m", "launch", "--config_file", "launch/gpus.yaml", "--num_processes", "1")
    start = [sys.executable, *(launcher if launched else ()), "train.py"]
    return [*start, *tiny_settings(*settings)]


def test_the_launcher_starts_a_process_for_a_gpu(scenes: Scenes, tmp_path: Path) -> None:
    command = gpu_command(
        "--data.train", scenes.train, "--run_dir", tmp_path / "run", "--train.steps", 5,
        "--monitor.sample_log", tmp_path / "gpu", "--train.precision", "bf16", launched=True,
    )  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 process on cuda" in done.stdout
    on_cpu = gpu_command(
        "--data.train", scenes.train, "--run_dir", tmp_path / "cpu", "--train.steps", 5,
        "--monitor.sample_log", tmp_path / "cpu-log",
    )  # fmt: skip
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin", **_python_path()}
    subprocess.run(on_cpu, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert read_sample_log(tmp_path / "gpu") == read_sample_log(tmp_path / "cpu-log")


def _python_path() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(("PYTHON", "HOME", "LD_"))}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on_to_the_losses_of_an_uninterrupted_one(
    scenes: Scenes, tmp_path: Path, precision: str, sent: signal.Signals
) -> None:
    """The optimiser's fused state and fp16's scale come back from the checkpoint."""
    settings = (
        "--data.train", scenes.train, "--train.epochs", 12, "--train.precision", precision,
        "--train.checkpoint_every_epochs", 1, "--monitor.log_every", 1,
    )  # fmt: skip
    whole = gpu_command(*settings, "--run_dir", tmp_path / "whole")
    subprocess.run(whole, cwd=ROOT, check=True, capture_output=True)
    log = tmp_path / "log.rank0.jsonl"
    command = gpu_command(
        *settings, "--run_dir", tmp_path / "run", "--monitor.sample_log", tmp_path / "log"
    )
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not (log.exists() and len(log.read_text().splitlines()) > 20):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(sent)
    code = process.wait(timeout=60)
    assert code == (STOPPED if sent == signal.SIGTERM else -signal.SIGKILL)
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "from step" in done.stdout.splitlines()[0]
    first, second = (
        load_model_state(list(list_checkpoints(tmp_path / name / "checkpoints"))[-1])
        for name in ("whole", "run")
    )
    differences = {
        name: float((value.double() - second[name].double()).norm() / value.double().norm())
        for name, value in first.items()
        if value.is_floating_point() and value.any()
    }
    print(json.dumps({"precision": precision, "worst": max(differences.values())}))
    assert max(differences.values()) < 0.2


def small_captioner(kind: str = "lstm") -> Captioner:
    torch.manual_seed(0)
    config = ModelConfig(
        dim=256,
        encoder=EncoderConfig(name="resnet18", hidden_dim=256, dropout=0.0),
        decoder=DecoderConfig(kind=kind, hidden_dim=256, dropout=0.0),
    )
    return Captioner(config, vocab_size=2500)


def small_inputs(num_images: int = 8) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (num_images, 96, 96, 3), generator=generator).byte()
    tokens = torch.randint(4, 2500, (num_images, 5, 16), generator=generator)
    lengths = torch.randint(2, 17, (num_images, 5, 1), generator=generator)
    tokens[torch.arange(16) >= lengths] = PAD
    targets = tokens[..., 1:].flatten()
    positions = (targets != PAD).nonzero()[:, 0]
    return Inputs(images, tokens, positions, targets[positions], torch.ones(len(positions)))


def gradients(captioner: Captioner, inputs: Inputs, autocast: torch.dtype | None) -> torch.Tensor:
    """The decoder's gradients and loss, as one vector."""
    objective = CrossEntropy(captioner).train().cuda()
    objective.captioner.encoder.eval()
    on_device = Inputs(*(part.cuda() for part in inputs))
    objective.zero_grad()
    with torch.autocast("cuda", autocast, enabled=autocast is not None):
        loss = objective(on_device).sum / len(inputs.positions)
    loss.backward()
    parts = [p.grad.flatten().double() for p in captioner.decoder.parameters()]
    return torch.cat([loss.detach().double()[None], *parts]).cpu()


@pytest.mark.parametrize("kind", DECODERS)
def test_bf16_gradients_are_near_those_of_float32(plain_float32: None, kind: str) -> None:
    """Recurrent layers of cuDNN in float16, which autocast would choose, are 0.8 to 27 % off."""
    exact = gradients(small_captioner(kind), small_inputs(), None)
    rough = gradients(small_captioner(kind), small_inputs(), torch.bfloat16)
    difference = float((exact - rough).norm() / exact.norm())
    print(json.dumps({"kind": kind, "bf16 against float32": difference}))
    assert difference < 0.02


@pytest.mark.parametrize("kind", DECODERS)
def test_gradients_on_a_gpu_are_those_of_a_cpu(plain_float32: None, kind: str) -> None:
    """Of captions of uneven lengths, whose padding only a CPU leaves out."""
    captioner, inputs = small_captioner(kind).double(), small_inputs()
    inputs = inputs._replace(weights=inputs.weights.double())
    on_gpu = gradients(captioner, inputs, None)
    objective = CrossEntropy(captioner).cpu()
    objective.zero_grad()
    (objective(inputs).sum / len(inputs.positions)).backward()
    on_cpu = torch.cat([p.grad.flatten() for p in captioner.decoder.parameters()])
    assert float((on_gpu[1:] - on_cpu).norm() / on_cpu.norm()) < 1e-9


def test_captions_on_a_gpu_are_those_of_a_cpu(
    scenes: Scenes, tmp_path: Path, plain_float32: None
) -> None:
    """Of a checkpoint, captioned by the command on both devices."""
    done = train(
        1, "--data.train", scenes.train, "--run_dir", tmp_path / "run", "--train.steps", 60,
        on_gpu=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    checkpoint = list(list_checkpoints(tmp_path / "run" / "checkpoints"))[-1]
    results = {}
    for device, variables in (("gpu", {}), ("cpu", {"CUDA_VISIBLE_DEVICES": ""})):
        command = [
            sys.executable, "-m", "pipeline.evaluate", "--checkpoint", str(checkpoint),
            "--shards", str(scenes.val), "--out", str(tmp_path / f"{device}.json"),
        ]  # fmt: skip
        environment = {**os.environ, **variables}
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
        results[device] = json.loads((tmp_path / f"{device}.json").read_text())
    assert results["gpu"] == results["cpu"]


def test_what_the_objective_makes_of_a_pinned_batch_is_pinned() -> None:
    """Only then is it copied to the GPU while the host goes on."""
    tokens, weights = collate_captions([[[5, 6], [7]], []], 2)
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    tensors = (images, tokens, weights)
    objective = CrossEntropy(torch.nn.Identity())  # type: ignore[arg-type]  # unused on the host
    pinned = objective.prepare(Batch(*(x.pin_memory() for x in tensors), [], []))
    assert all(x.is_pinned() for x in pinned.inputs)
    plain = objective.prepare(Batch(*tensors, [], []))
    assert not any(x.is_pinned() for x in plain.inputs)
    assert all(map(torch.equal, pinned.inputs, plain.inputs))
