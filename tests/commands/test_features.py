"""Stored features: made once, byte for byte, and as good as the images."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes, digests
from support.training import read_sample_log, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.checkpoint.folder import list_checkpoints

LAUNCH = ["-m", "launch", "--config_file", "launch/cpu.yaml", "--num_processes"]
BACKBONE = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone whose statistics fit its weights, so that its features are neither 0 nor huge."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(BACKBONE, weights=None).train()
    with torch.no_grad():
        for _ in range(30):
            network(torch.rand(8, 3, 64, 64) * 4 - 2)
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file(network.state_dict(), path)
    return path


def model_settings(weights: Path, kind: str = "soft_attention") -> list[str]:
    settings = {
        "model.encoder.name": BACKBONE, "model.encoder.weights": weights,
        "model.encoder.tune": "none", "model.decoder.kind": kind, "model.decoder.attention_dim": 8,
        "data.image_size": 64,
    }  # fmt: skip
    return [str(text) for key, value in settings.items() for text in (f"--{key}", value)]


def features_command(
    scenes: Scenes, weights: Path, out: Path, *options: object, split: str = "train",
    processes: int = 1,
) -> list[str]:  # fmt: skip
    launched = [*LAUNCH, processes] if processes > 1 else []
    shards = getattr(scenes, split)
    options = ("--shards", shards, "--out", out, "--batch_size", 4, "--workers", 1, *options)
    command = [sys.executable, *launched, "-m", "pipeline.features", *options]
    return [*map(str, command), *model_settings(weights)]


def make(*arguments: object, **keywords: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        features_command(*arguments, **keywords), cwd=ROOT, env=ONE_THREAD, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def features(scenes: Scenes, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float32 features of the training images."""
    out = tmp_path_factory.mktemp("features") / "train"
    done = make(scenes, weights, out, "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    # Two positions a side, 32 pixels each, and 1,024 channels.
    assert "features 1 x 4 x 1024 float32 of 63 images" in done.stdout
    return out


def test_they_are_the_same_bytes_however_they_were_made(
    scenes: Scenes, weights: Path, features: Path, tmp_path: Path
) -> None:
    """By two processes, and by one that was killed."""
    options = ("--dtype", "float32")
    done = make(scenes, weights, tmp_path / "two", *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "two") == digests(features)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        features_command(scenes, weights, killed, *options), cwd=ROOT, env=ONE_THREAD,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list(killed.glob("train-*.json")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "manifest.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in killed.glob("train-*.json")}
    assert make(scenes, weights, killed, *options).returncode == 0
    assert digests(killed) == digests(features)
    assert before == {name: (killed / name).stat().st_mtime_ns for name in before}  # not again


def losses(run: Path) -> list[float]:
    log = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [point.value for point in log.Scalars("train/loss")]


def run_training(folder: Path, shards: Path, weights: Path, *settings: object) -> Path:
    done = train(
        1, "--data.train", shards, "--run_dir", folder, "--train.steps", 50, "--train.epochs", 20,
        "--monitor.log_every", 1, "--monitor.sample_log", folder / "log", "--data.crop", "center",
        *model_settings(weights), *settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_training_on_them_is_training_on_the_images(
    scenes: Scenes, weights: Path, features: Path, tmp_path: Path
) -> None:
    """The same samples, and the same losses to rounding; dropout on."""
    on_images = run_training(tmp_path / "images", scenes.train, weights)
    on_features = run_training(tmp_path / "features", features, weights, "--data.workers", 1)
    assert len(losses(on_images)) == 50
    assert losses(on_features) == pytest.approx(losses(on_images), rel=1e-6)
    assert read_sample_log(on_features / "log") == read_sample_log(on_images / "log")
    half = tmp_path / "half"
    assert make(scenes, weights, half).returncode == 0
    on_half = run_training(tmp_path / "on-half", half, weights)
    assert losses(on_half) == pytest.approx(losses(on_images), rel=0.01)
    assert losses(on_half) != losses(on_images)


def test_a_checkpoint_from_features_captions_images(
    scenes: Scenes, weights: Path, features: Path, tmp_path: Path
) -> None:
    """The checkpoint brings the backbone; features and images get the same captions."""
    run = run_training(tmp_path / "run", features, weights)
    checkpoint = list(list_checkpoints(run / "checkpoints"))[-1]
    weights_elsewhere = weights.rename(weights.with_name("moved.safetensors"))
    try:
        val = tmp_path / "val"
        command = [
            sys.executable, "-m", "pipeline.features", "--checkpoint", checkpoint,
            "--shards", scenes.val, "--out", val, "--dtype", "float32",
        ]  # fmt: skip
        subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True)
        results = []
        for shards in (scenes.val, val):
            out = tmp_path / f"{shards.name}.json"
            evaluate = [
                sys.executable, "-m", "pipeline.evaluate", "--checkpoint", checkpoint,
                "--shards", shards, "--out", out,
            ]  # fmt: skip
            subprocess.run(list(map(str, evaluate)), cwd=ROOT, check=True, capture_output=True)
            results.append(json.loads(out.read_text()))
    finally:
        weights_elsewhere.rename(weights)
    assert results[0] == results[1]
    assert len(results[0]) == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--model.encoder.tune", "all"), "holds features of a frozen backbone"),
        (("--data.image_size", 96), "made with image_size 64"),
        (("--model.decoder.kind", "lstm"), "made with output grid"),
        (("--model.encoder.name", "shufflenet_v2_x1_0"), "shufflenet_v2_x0_5"),
    ],
)
def test_what_does_not_fit_is_refused(
    weights: Path, features: Path, tmp_path: Path, settings: tuple[object, ...], message: str
) -> None:
    if "shufflenet_v2_x1_0" in settings:
        other = torchvision.models.get_model("shufflenet_v2_x1_0", weights=None)
        save_file(other.state_dict(), tmp_path / "other.safetensors")
        settings = (*settings, "--model.encoder.weights", tmp_path / "other.safetensors")
    done = train(
        1, "--data.train", features, "--run_dir", tmp_path / "run", "--train.steps", 1,
        *model_settings(weights), *settings,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_other_weights_are_refused(weights: Path, features: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = torchvision.models.get_model(BACKBONE, weights=None)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    done = train(
        1, "--data.train", features, "--run_dir", tmp_path / "run", "--train.steps", 1,
        *model_settings(tmp_path / "other.safetensors"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "made with other weights" in done.stderr.splitlines()[-1]
