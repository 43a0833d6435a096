"""What storing features costs, and what training on them costs: images/s.

    python benchmarks/features.py

Extraction: encoding a whole data set into shards of features, from reading the images to the
manifest, beside the bare encoder on the same decoded pixels in memory.

Training: the trainer on the stored features, with loader, checks, logging and all, as its own
TensorBoard log has it, beside the same head, decoder and optimiser on a batch of features that lies
on the device, with each step's own captions.

A CPU keeps a core for the loader's process: where two threads share a core with it or with anyone
else, they wait for each other, and their speeds cannot be compared.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.images import ROOT, add_image_options, make_shards
from benchmarks.side_by_side import (
    Result,
    add_common_options,
    machine_facts,
    ratio,
    report,
    take_turns,
)
from benchmarks.step import LOG_EVERY, WARM_UP, bare_model_speed, trainer_speed
from pipeline.config.data import DataConfig
from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.config.monitoring import MonitorConfig
from pipeline.config.run import Config
from pipeline.config.training import OptimConfig, TrainConfig
from pipeline.data.dataset import EvalDataset
from pipeline.data.reader import ShardFolder
from pipeline.data.worker_processes import start_worker_server
from pipeline.evaluation.feature_job import FeatureJob, encode_data_set
from pipeline.evaluation.features import policy_of
from pipeline.model.encoders.image_encoder import ImageEncoder, load_backbone
from pipeline.runtime.world import World

NAME = "timm/tf_efficientnet_lite2"
WEIGHTS = ROOT.parent / "shared" / "weights" / "tf_efficientnet_lite2.safetensors"
IMAGE_SIZE = 224
BATCH_SIZE = 32  # images encoded at once
GOALS = {"extraction / bare encoder": 0.95, "training / bare decoder": 0.9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_image_options(parser, samples=1000)
    parser.add_argument("--name", default=NAME, help="of the backbone")
    parser.add_argument("--weights", type=Path, help="of the backbone; drawn if there are none")
    parser.add_argument("--decoder", default="soft_attention", help="model.decoder.kind")
    parser.add_argument("--steps", type=int, default=20, help="of each training, 15 or more")
    parser.add_argument("--batch_size", type=int, default=48, help="images of a training step")
    add_common_options(parser)
    parser.set_defaults(repetitions=3)
    arguments = parser.parse_args()
    arguments.steps = max(arguments.steps, WARM_UP + LOG_EVERY)
    facts = machine_facts()
    torch.set_num_threads(max(facts["cores"] - 1, 1))
    # Loader workers would import this file, and wait for its imports in each repetition. Those of
    # the command import pipeline/features.py, which imports next to nothing.
    del sys.modules["__main__"].__file__
    start_worker_server()  # as the commands do
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards, facts["images"] = make_shards(arguments, folder, 250, facts["cores"])
        facts["weights"] = "given" if _given_weights(arguments) else "drawn"
        config = _config(arguments, shards, folder)
        measured = take_turns(_variants(config, shards, folder), arguments.repetitions)
    on_gpu = torch.cuda.is_available()
    facts["device"] = torch.cuda.get_device_name() if on_gpu else "CPU"
    facts["threads"] = torch.get_num_threads()
    facts["model"] = f"{arguments.name} at {IMAGE_SIZE} px, {arguments.decoder}"
    facts["batch"] = f"{BATCH_SIZE} images encoded, {arguments.batch_size} trained"
    pairs = zip(GOALS.items(), ((0, 1), (2, 3)), strict=True)
    ratios = {title: (ratio(measured, *pair), goal) for (title, goal), pair in pairs}
    report(facts, measured, ratios, arguments.json)


def _variants(config: Config, shards: Path, folder: Path) -> dict[str, Callable[[], Result]]:
    """Ours and the bare work, of extraction and of training."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = ShardFolder(shards)
    encoder = ImageEncoder(config.model.encoder, config.model.dim, "grid").eval()
    policy = policy_of(encoder, config, source, "float16", views=1, flip=False)
    encoder.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    job = FeatureJob(source, folder / "features", policy, BATCH_SIZE, config.data.workers)
    _extract(job, encoder, device)  # what training reads; it also warms up
    training = replace(config, data=replace(config.data, train=str(job.out)))
    bare_decoder = bare_model_speed(training)
    pixels = _pixels(source)
    runs = iter(range(1 << 30))

    def extraction() -> Result:
        again = replace(job, out=folder / "again")
        result = _extract(again, encoder, device)
        shutil.rmtree(again.out)
        return result

    return {
        "extraction": extraction,
        "bare encoder": lambda: _bare_encoder(encoder, pixels, device),
        "training": lambda: trainer_speed(training, folder / f"run-{next(runs)}"),
        "bare decoder": lambda: (bare_decoder(), {}),
    }


def _extract(job: FeatureJob, encoder: ImageEncoder, device: torch.device) -> Result:
    job.out.mkdir()
    start = time.perf_counter()
    manifest = encode_data_set(job, encoder, World(), device)
    seconds = time.perf_counter() - start
    assert manifest is not None
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    return manifest.num_samples / seconds, {"KB an image": num_bytes / manifest.num_samples / 1e3}


def _pixels(source: ShardFolder) -> list[torch.Tensor]:
    """The batches that the extraction encodes, decoded."""
    dataset = EvalDataset(source, IMAGE_SIZE)
    starts = source.index.shard_starts.tolist()
    return [
        dataset[np.arange(first, min(first + BATCH_SIZE, stop))].images
        for shard, stop in enumerate(starts[1:])
        for first in range(starts[shard], stop, BATCH_SIZE)
    ]


@torch.no_grad()
def _bare_encoder(
    encoder: ImageEncoder, batches: list[torch.Tensor], device: torch.device
) -> Result:
    start = time.perf_counter()
    for batch in batches:
        encoder.features(batch.to(device)).half().cpu()
    return sum(map(len, batches)) / (time.perf_counter() - start), {}


def _config(arguments: argparse.Namespace, shards: Path, folder: Path) -> Config:
    on_gpu = torch.cuda.is_available()
    weights = _given_weights(arguments) or _drawn_weights(arguments.name, folder)
    encoder = EncoderConfig(name=arguments.name, weights=str(weights), tune="none")
    return Config(
        data=DataConfig(
            train=str(shards),
            global_batch_size=arguments.batch_size,
            workers=min(os.cpu_count() or 1, 8) if on_gpu else 1,
            image_size=IMAGE_SIZE,
        ),
        model=ModelConfig(
            dim=512,
            encoder=encoder,
            decoder=DecoderConfig(kind=arguments.decoder, hidden_dim=512, attention_dim=512),
        ),
        optim=OptimConfig(warmup_epochs=0),
        train=TrainConfig(
            epochs=None,
            steps=arguments.steps,
            precision="bf16" if on_gpu else "fp32",
            checkpoint_every_epochs=0,
            checkpoint_minutes=0,
        ),
        monitor=MonitorConfig(log_every=LOG_EVERY),
    )


def _given_weights(arguments: argparse.Namespace) -> Path | None:
    if arguments.weights:
        return Path(arguments.weights)
    return WEIGHTS if arguments.name == NAME and WEIGHTS.exists() else None


@torch.no_grad()
def _drawn_weights(name: str, folder: Path) -> Path:
    """Random weights, with statistics of BatchNorm that fit them.

    Without these, the numbers would become so small from layer to layer that a CPU slows down.
    """
    network = load_backbone(EncoderConfig(name=name), "pooled").network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average of all batches
    network(torch.randn(8, 3, IMAGE_SIZE, IMAGE_SIZE))
    path = folder / "drawn.safetensors"
    save_file(network.state_dict(), path)
    return path


if __name__ == "__main__":
    main()
