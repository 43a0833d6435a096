"""What the trainer's loop adds to the bare model: images/s of both.

    python benchmarks/step.py

Side by side: training by the trainer, with loader, checks, logging and all, as its own TensorBoard
 log has it; the same model and optimiser on images that lie on the device, a batch for
all steps, with each step's own captions: forward, backward, clipping, AdamW. Of each repetition the
median stretch of a few steps counts.

A GPU trains DenseNet121 at 224 px. A CPU, where a step of that would take half a minute, trains
ResNet18 at 96 px, with a core left to the loader's process: where two threads share a core with it
or with anyone else, they wait for each other, and their speeds cannot be compared.
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.images import add_image_options, make_shards, trainer_batches
from benchmarks.side_by_side import (
    Result,
    add_common_options,
    machine_facts,
    ratio,
    report,
    take_turns,
)
from pipeline.config.data import DataConfig
from pipeline.config.model import DecoderConfig, EncoderConfig, ModelConfig
from pipeline.config.monitoring import MonitorConfig
from pipeline.config.run import Config
from pipeline.config.training import OptimConfig, TrainConfig
from pipeline.objectives.cross_entropy import CrossEntropy
from pipeline.objectives.objective import Prepared
from pipeline.runtime.world import read_world
from pipeline.training.inputs import prepare
from pipeline.training.optimizer import make_optimizer
from pipeline.training.trainer import fit

LOG_EVERY = 5  # steps a stretch; the first two of a run are warming up
WARM_UP = 2 * LOG_EVERY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_image_options(parser, samples=1500)
    parser.add_argument("--steps", type=int, help="of each repetition; 30, on a GPU 200")
    parser.add_argument("--batch_size", type=int, help="images; 32, on a GPU 256")
    add_common_options(parser)
    parser.set_defaults(repetitions=3)
    arguments = parser.parse_args()
    facts = machine_facts()
    torch.set_num_threads(max(facts["cores"] - 1, 1))
    on_gpu = torch.cuda.is_available()
    steps = max(arguments.steps or (200 if on_gpu else 30), WARM_UP + LOG_EVERY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards, facts["images"] = make_shards(arguments, folder, 250, len(os.sched_getaffinity(0)))
        config = _gpu_config(shards) if on_gpu else _cpu_config(shards)
        config = replace(config, train=replace(config.train, steps=steps))
        if arguments.batch_size:
            data = replace(config.data, global_batch_size=arguments.batch_size)
            config = replace(config, data=data)
        bare_model = bare_model_speed(config)
        runs = iter(range(arguments.repetitions))
        measured = take_turns(
            {
                "capstream": lambda: trainer_speed(config, folder / f"run-{next(runs)}"),
                "bare model": lambda: (bare_model(), {}),
            },
            arguments.repetitions,
        )
    facts["device"] = torch.cuda.get_device_name() if on_gpu else "CPU"
    facts["threads"] = torch.get_num_threads()
    facts["model"] = f"{config.model.encoder.name} at {config.data.image_size} px"
    facts["batch"] = f"{config.data.global_batch_size} images"
    facts["precision"] = config.train.precision
    report(
        facts, measured, {"capstream / bare model": (ratio(measured, 0, 1), 0.95)}, arguments.json
    )


def _gpu_config(shards: Path) -> Config:
    return Config(
        data=DataConfig(train=str(shards), global_batch_size=256, workers=os.cpu_count() or 2),
        optim=OptimConfig(warmup_epochs=0),
        train=TrainConfig(
            epochs=None, precision="bf16", checkpoint_every_epochs=0, checkpoint_minutes=0
        ),
        monitor=MonitorConfig(log_every=LOG_EVERY),
    )


def _cpu_config(shards: Path) -> Config:
    return Config(
        data=DataConfig(train=str(shards), global_batch_size=32, workers=1, image_size=96),
        model=ModelConfig(
            dim=256,
            encoder=EncoderConfig(name="resnet18", hidden_dim=256),
            decoder=DecoderConfig(hidden_dim=256),
        ),
        optim=OptimConfig(warmup_epochs=0),
        train=TrainConfig(epochs=None, checkpoint_every_epochs=0, checkpoint_minutes=0),
        monitor=MonitorConfig(log_every=LOG_EVERY),
    )


def trainer_speed(config: Config, run_dir: Path) -> Result:
    """One run of the trainer. Its log leaves evaluation and commits out of the speed."""
    with contextlib.redirect_stdout(io.StringIO()):
        fit(prepare(replace(config, run_dir=str(run_dir)), read_world()))
    log = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    speeds, waits = (
        [point.value for point in log.Scalars(f"speed/{name}")][WARM_UP // LOG_EVERY :]
        for name in ("images_per_s", "data_wait_share")
    )
    return statistics.median(speeds), {"waiting for data, %": 100 * statistics.mean(waits)}


def bare_model_speed(config: Config) -> Callable[[], float]:
    """Prepare the bare model. Returns a function that trains it and gives images/s."""
    with tempfile.TemporaryDirectory() as run_dir:  # nothing is written: this is no run
        run = prepare(replace(config, run_dir=run_dir), read_world())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = CrossEntropy(run.captioner).train().to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(run.captioner, config.optim)
    batches: list[Prepared] = []
    images: torch.Tensor | None = None
    for batch in trainer_batches(run.train_shards, config.data, config.train.steps):
        # Captions differ in length and so in their cost: the same as the trainer's, step by step.
        images = batch.images.to(device) if images is None else images
        prepared = model.prepare(batch._replace(images=images))
        batches.append(prepared._replace(inputs=send_to_device(prepared.inputs, device)))

    def take() -> float:
        speeds = []
        for first in range(0, len(batches), LOG_EVERY):
            stretch = batches[first : first + LOG_EVERY]
            start = time.perf_counter()
            for batch in stretch:
                _bare_step(model, optimizer, batch, config)
            _synchronize(device)
            num_images = sum(len(batch.inputs.images) for batch in stretch)
            speeds.append(num_images / (time.perf_counter() - start))
        return statistics.median(speeds[WARM_UP // LOG_EVERY :])

    return take


def _bare_step(
    model: CrossEntropy, optimizer: torch.optim.Optimizer, batch: Prepared, config: Config
) -> None:
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=config.train.precision == "bf16")
    with autocast:
        loss = model(batch.inputs).sum
    (loss / batch.num_terms).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
    optimizer.step()
    optimizer.zero_grad()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
