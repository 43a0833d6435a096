"""Captions and scores of a data set, over all ranks.

accelerate launch -m pipeline.evaluate --checkpoint DIR --shards DIR_OR_URL --out results.json
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from tokenizers import Tokenizer
from tqdm import tqdm

from pipeline.data import EvalDataset, ImageId, ShardFolder, check_bad
from pipeline.exits import usage_errors
from pipeline.generate import generate, load_trained
from pipeline.loader import EVAL_SHARDS, eval_loader, start_worker_server
from pipeline.metrics import caption_scores
from pipeline.model.captioner import Captioner
from pipeline.phases import FETCH_LIMIT_S, Phase
from pipeline.places import local_folders
from pipeline.processes import join_processes
from pipeline.sheet import Captioned
from pipeline.watchdog import Watchdog
from shards.atomic import write_atomic
from shards.tokenizer import tokenizer_sha256


@dataclass(frozen=True)
class Evaluation:
    """A captioned data set; complete on the main process, empty on the others."""

    captions: dict[ImageId, str]
    references: dict[ImageId, list[str]]
    pictures: list[Captioned]
    bad: list[str]  # damaged samples, left out

    def results(self) -> list[dict[str, Any]]:
        """COCO's own results format."""
        return [{"image_id": i, "caption": caption} for i, caption in self.captions.items()]


def evaluate(
    accelerator: Accelerator,
    captioner: Captioner,
    dataset: EvalDataset,
    tokenizer: Tokenizer,
    max_tokens: int,
    batch_size: int,
    workers: int,
    beat: Callable[..., None],
    num_pictures: int = 0,
    max_bad: float = 0.0,
) -> Evaluation:
    """Caption every image of a data set once, each rank its share.

    Args:
        captioner: the unwrapped model, on the accelerator's device; its mode is restored.
        beat: told of each phase, and how long it may take: `Watchdog.beat` of this round.
        num_pictures: keep so many of the pictures, for showing.
        max_bad: share of the samples, 0 to 1, that may prove damaged and be left out.
    Raises:
        TooManyBadError: more are damaged.
        RuntimeError: the ranks together did not caption each image.
    """
    loader = eval_loader(
        dataset,
        batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    was_training = captioner.training
    captioner.eval()
    for buffer in captioner.buffers():  # ranks' own BatchNorm statistics: rank 0's count
        if accelerator.num_processes > 1:
            broadcast(buffer)
    rows: list[tuple[ImageId, str, list[str]]] = []
    bad: list[str] = []
    pictures: list[Captioned] = []
    progress = tqdm(
        total=len(dataset.shards),
        desc="captioning",
        unit=" images",
        leave=False,
        disable=not accelerator.is_main_process,
    )
    limit_s = FETCH_LIMIT_S if dataset.shards.cache else None
    beat(Phase.EVALUATE, limit_s)
    for batch in loader:
        beat(Phase.EVALUATE, limit_s)
        with accelerator.autocast():
            images = batch.images.to(accelerator.device, non_blocking=True)
            captions = generate(captioner, images, tokenizer, max_tokens)
        rows += zip(batch.ids, captions, batch.references, strict=True)
        bad += batch.bad
        for number in range(min(num_pictures - len(pictures), len(captions))):
            pixels = batch.images[number].numpy()
            pictures.append(Captioned(pixels, captions[number], batch.references[number][0]))
        done = len(captions) * accelerator.num_processes  # the others are about as far
        progress.update(min(done, len(dataset.shards) - progress.n))
    progress.close()
    captioner.train(was_training)
    beat(Phase.GATHER)
    gathered = gather_object(rows) if accelerator.num_processes > 1 else rows
    bad = gather_object(bad) if accelerator.num_processes > 1 else bad
    check_bad(len(bad), max_bad, len(dataset.shards), bad)
    unique = {image_id: (caption, refs) for image_id, caption, refs in gathered}
    if len(unique) + len(bad) != len(dataset.shards) or len(gathered) != len(unique):
        raise RuntimeError(
            f"{len(gathered)} captions of {len(unique)} images came together, of "
            f"{len(dataset.shards)} images in {dataset.shards.place}"
        )
    if not accelerator.is_main_process:
        return Evaluation({}, {}, [], [])
    ids = sorted(unique, key=str)  # one order, so that sums of scores round alike
    captions_of = {i: unique[i][0] for i in ids}
    return Evaluation(captions_of, {i: unique[i][1] for i in ids}, pictures, bad)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint's folder")
    parser.add_argument("--shards", required=True, help="the data set to caption, a path or a URL")
    parser.add_argument("--out", type=Path, required=True, help="COCO results file to write")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time, a process")
    parser.add_argument("--workers", type=int, default=2, help="loader processes, a process")
    parser.add_argument("--cache_dir", help="as data.cache_dir of train.py")
    parser.add_argument("--cache_gb", type=float, default=50.0, help="as data.cache_gb of train.py")
    parser.add_argument(
        "--max_bad", type=float, default=0.0, help="share of the samples that may prove damaged"
    )
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    arguments = parser.parse_args()
    with usage_errors("evaluate"):
        if arguments.batch_size < 1:
            raise ValueError(f"--batch_size: {arguments.batch_size}: must be 1 or more")
        if not 0 < arguments.cache_gb < math.inf:
            raise ValueError(f"--cache_gb: {arguments.cache_gb}: must be above 0, and finite")
        if not 0 <= arguments.max_bad <= 1:
            raise ValueError(f"--max_bad: {arguments.max_bad}: must be a share from 0 to 1")
        if ":/" in str(arguments.out):  # what a path leaves of ://
            raise ValueError(f"--out: {arguments.out}: must be a file on a file system")
        if arguments.out.is_dir():
            raise ValueError(f"--out: {arguments.out}: is a folder; name a file in it")
        trained = load_trained(arguments.checkpoint)
        places = [(arguments.shards, EVAL_SHARDS)]
        found = local_folders(places, arguments.cache_dir, arguments.cache_gb, "--cache")
        shards = ShardFolder(*found[0])
        if shards.manifest.tokenizer_sha256 != tokenizer_sha256(trained.tokenizer_path):
            raise ValueError(
                f"{arguments.shards}: built with another tokenizer than {arguments.checkpoint} "
                "was trained with; build the shards with the checkpoint's tokenizer.json"
            )
    if arguments.workers:
        start_worker_server()
    accelerator = join_processes()
    torch.set_grad_enabled(False)
    with Watchdog(accelerator.process_index, accelerator.num_processes) as watchdog:
        evaluation = evaluate(
            accelerator,
            trained.captioner.to(accelerator.device),
            EvalDataset(shards, trained.config.data.image_size),
            trained.tokenizer,
            trained.config.model.max_tokens,
            arguments.batch_size,
            arguments.workers,
            partial(watchdog.beat, 0),
            max_bad=arguments.max_bad,
        )
        for text in evaluation.bad:
            print(f"left out: {text}", file=sys.stderr)
        if accelerator.is_main_process:
            watchdog.beat(0, Phase.SCORE)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(arguments.out, json.dumps(evaluation.results()).encode())
            scores = caption_scores(evaluation.captions, evaluation.references)
            _print_scores(scores, len(evaluation.captions), arguments)
    accelerator.end_training()


def _print_scores(scores: dict[str, float], num_images: int, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps({"images": num_images, **scores}))
        return
    print(f"{arguments.out}: captions of {num_images:,} images, scored against the shards' own")
    for name, value in scores.items():
        print(f"  {name:<8} {value:.4f}")


if __name__ == "__main__":
    main()
