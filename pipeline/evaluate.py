"""Captions and scores of a data set, over all ranks.

accelerate launch -m pipeline.evaluate --checkpoint DIR --shards DIR_OR_URL --out results.json
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch

from pipeline.data.dataset import EvalDataset
from pipeline.data.loader import EVAL_SHARDS, start_worker_server
from pipeline.data.reader import ShardFolder
from pipeline.distributed.fault_policy import Phase
from pipeline.distributed.process_group import join_processes
from pipeline.distributed.watchdog import Watchdog
from pipeline.evaluation.evaluator import evaluate
from pipeline.generation.trained import load_trained
from pipeline.metrics import caption_scores
from pipeline.remote.location import local_folders
from pipeline.runtime.errors import usage_errors
from pipeline.runtime.world import read_world
from shards.atomic import write_atomic
from shards.tokenizer import tokenizer_sha256


def main() -> None:
    """Command line."""
    world = read_world()
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
    with usage_errors("evaluate", world):
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
    accelerator = join_processes(world)
    torch.set_grad_enabled(False)
    with Watchdog(world) as watchdog:

        def beat(phase: Phase, limit_s: float | None = None) -> None:
            with watchdog.phase(phase, 0, limit_s):
                pass

        evaluation = evaluate(
            accelerator,
            world,
            trained.captioner.to(accelerator.device),
            EvalDataset(shards, trained.config.data.image_size),
            trained.tokenizer,
            trained.config.model.max_tokens,
            arguments.batch_size,
            arguments.workers,
            beat,
            max_bad=arguments.max_bad,
        )
        for text in evaluation.bad:
            print(f"left out: {text}", file=sys.stderr)
        if accelerator.is_main_process:
            beat(Phase.SCORE)
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
