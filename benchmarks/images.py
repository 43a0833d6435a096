"""The images that the benchmarks work on, and shards of them."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config.data import DataConfig
from pipeline.data.batch import Batch
from pipeline.data.dataset import TrainDataset
from pipeline.data.loader import train_loader
from pipeline.data.partition import MicroBatchSampler
from pipeline.data.reader import ShardFolder
from pipeline.data.sample_order import Order
from pipeline.runtime.world import World

ROOT = Path(__file__).resolve().parents[1]
COCO_MINI = ROOT.parent / "shared" / "data" / "coco-mini"
ANNOTATIONS = "annotations.json"
TOKENIZER = "tokenizer.json"


def add_image_options(parser: argparse.ArgumentParser, samples: int) -> None:
    parser.add_argument("--images", type=Path, help="folder of images; coco-mini or drawn without")
    parser.add_argument("--annotations", type=Path, help="COCO caption file of --images")
    parser.add_argument(
        "--samples",
        type=int,
        default=samples,
        help="number of images; the given ones are repeated to reach it",
    )


def source(arguments: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, Any], str]:
    """The images to measure with.

    Args:
        folder: temporary; drawings go there if nothing better is found.
    Returns:
        Image folder, COCO caption data, and a description of the images.
    """
    if (arguments.images is None) != (arguments.annotations is None):
        raise SystemExit("--images and --annotations belong together")
    if arguments.images:
        parts = [("", arguments.annotations)]
        return arguments.images, _merged(parts), f"{arguments.images.name}, given"
    if COCO_MINI.is_dir():
        splits = ("train2017", "val2017")
        parts = [(s, COCO_MINI / "annotations" / f"captions_{s}.json") for s in splits]
        return COCO_MINI, _merged(parts), "coco-mini, photographs of about 640x480"
    shards_command("sample", "--out", folder, "--images", 300)
    files = [("", file) for file in sorted((folder / "annotations").glob("*.json"))[:1]]
    split = files[0][1].stem.removeprefix("captions_")
    return folder / split, _merged(files), "drawn images"


def _merged(parts: Iterable[tuple[str, Path]]) -> dict[str, Any]:
    """Caption files of several folders as one, file names relative to the folders' parent."""
    images, annotations = [], []
    for folder, file in parts:
        data = json.loads(file.read_bytes())
        for image in data["images"]:
            name = str(Path(folder) / image["file_name"])
            images.append({"id": image["id"], "file_name": name})
        annotations += data["annotations"]
    return {"images": images, "annotations": annotations}


def repeated(data: dict[str, Any], num_samples: int) -> dict[str, Any]:
    """The same images and captions again and again, under new ids, until there are enough."""
    captions: dict[int, list[str]] = {image["id"]: [] for image in data["images"]}
    for entry in data["annotations"]:
        captions[entry["image_id"]].append(entry["caption"])
    images, annotations = [], []
    for number in range(num_samples):
        image = data["images"][number % len(data["images"])]
        images.append({"id": number, "file_name": image["file_name"]})
        for caption in captions[image["id"]]:
            entry = {"id": len(annotations), "image_id": number, "caption": caption}
            annotations.append(entry)
    return {"images": images, "annotations": annotations}


def write_source(data: dict[str, Any], folder: Path) -> None:
    """Write captions and their tokenizer to `folder`, as `python -m shards build` wants them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANNOTATIONS).write_text(json.dumps(data))
    shards_command(
        "tokenizer", "--annotations", folder / ANNOTATIONS, "--out", folder / TOKENIZER,
        "--min_count", 1,
    )  # fmt: skip


def build_command(
    images: Path,
    source_dir: Path,
    out: Path,
    samples_per_shard: int,
    workers: int,
    resize_short: int = 256,
) -> list[str]:
    """The command that packs what `write_source` wrote, at quality 90.

    Args:
        resize_short: short side of the packed images in pixels; 0 keeps the bytes of the files.
    """
    options = {
        "images": images, "annotations": source_dir / ANNOTATIONS,
        "tokenizer": source_dir / TOKENIZER, "out": out,
        "resize_short": resize_short, "quality": 90,
        "samples_per_shard": samples_per_shard, "workers": workers,
    }  # fmt: skip
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "shards", "build", *flags, "--json"]


def make_shards(
    arguments: argparse.Namespace, folder: Path, samples_per_shard: int, workers: int
) -> tuple[Path, str]:
    """Build shards for a benchmark. Returns their folder and a description of their contents."""
    images, data, description = source(arguments, folder / "drawn")
    write_source(repeated(data, arguments.samples), folder)
    shards = folder / "shards"
    run_quietly(build_command(images, folder, shards, samples_per_shard, workers))
    return shards, description


def trainer_batches(
    shards: ShardFolder, config: DataConfig, steps: int = 1 << 30, first_step: int = 0
) -> Iterator[Batch]:
    """The batches of a training run of one process with seed 0, as its own loader gives them."""
    order = Order.of(shards.manifest, seed=0, shuffle_block=config.shuffle_block)
    sampler = MicroBatchSampler(
        order,
        config.global_batch_size,
        num_slots=steps * config.global_batch_size,
        first_step=first_step,
        rank=0,
        world_size=1,
        accumulation_steps=1,
    )
    dataset = TrainDataset(shards, config, seed=0)
    return iter(train_loader(dataset, sampler, World(), [0], pin_memory=False))


def shards_command(*parts: object) -> None:
    run_quietly([sys.executable, "-m", "shards", *map(str, parts)])


def run_quietly(command: list[str]) -> str:
    """Run a command in the repository. Returns its standard output."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout
