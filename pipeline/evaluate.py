"""Caption a data set with a checkpoint and score the captions against its reference captions.

python -m pipeline.evaluate --checkpoint DIR --shards DIR_OR_URL --out results.json

On several GPUs: accelerate launch -m pipeline.evaluate with the same options.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.generation import GenerationConfig, describe, used_settings
from pipeline.generation.options import add_checkpoint_option, add_generation_options, with_options
from pipeline.runtime.errors import usage_errors
from pipeline.runtime.world import World, read_world
from shards.arguments import CommandParser

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` does not need it
    from pipeline.evaluation.evaluator import EvaluationTask
    from pipeline.generation.trained import Trained


def main(prog: str = "python -m pipeline.evaluate") -> int:
    """Command line. Returns the exit code."""
    with usage_errors("evaluate"):
        world = read_world()
    with usage_errors("evaluate", world):
        arguments = _parser(prog).parse_args()
        _check(arguments)
        if world.is_main:  # only the main process writes
            _make_out_folder(arguments.out)
        trained, task = _read_inputs(arguments)
    _evaluate(world, trained, task, arguments)
    return 0


def _parser(prog: str) -> CommandParser:
    parser = CommandParser(
        prog=prog,
        exit_on_error=False,
        description="Caption a data set with a checkpoint, write the captions to a file, and score "
        "them against the reference captions of the data set.",
    )
    add_checkpoint_option(parser)
    parser.add_argument("--shards", required=True, help="path or URL of the data set to caption")
    parser.add_argument(
        "--out", type=Path, required=True, help="file to write, in COCO's results format"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images that are loaded at once")
    parser.add_argument("--workers", type=int, default=2, help="loader workers of each process")
    parser.add_argument(
        "--cache_dir",
        help="folder for shards behind a URL, on a disk of this machine (default: a folder of "
        "yours in $TMPDIR or /var/tmp)",
    )
    parser.add_argument(
        "--cache_gb", type=float, default=50.0, help="limit of these shards, in 10**9 bytes"
    )
    parser.add_argument(
        "--max_bad",
        type=float,
        default=0.0,
        help="share of the samples, 0 to 1, that may be bad and are then left out (default: 0.0)",
    )
    parser.add_argument("--json", action="store_true", help="print the scores as a JSON object")
    add_generation_options(parser)
    return parser


def _check(arguments: argparse.Namespace) -> None:
    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size: {arguments.batch_size}: must be 1 or more")
    if arguments.workers < 0:
        raise ValueError(f"--workers: {arguments.workers}: must be 0 or more")
    if not 0 < arguments.cache_gb < math.inf:
        raise ValueError(f"--cache_gb: {arguments.cache_gb}: must be above 0, and finite")
    if not 0 <= arguments.max_bad <= 1:
        raise ValueError(f"--max_bad: {arguments.max_bad}: must be a share from 0 to 1")
    if ":/" in str(arguments.out):  # a path shortens :// to this
        raise ValueError(f"--out: {arguments.out}: must be a file of a file system, not a URL")


def _make_out_folder(out: Path) -> None:
    """Make the folder of the results file, and check that a file can be written there.

    It is checked before the evaluation, which may take hours.

    Raises:
        ValueError: no file can be written there.
    """
    if out.is_dir():
        raise ValueError(f"--out: {out}: is a folder; name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise ValueError(f"--out: {out}: cannot be written ({error.strerror})") from None


def _read_inputs(arguments: argparse.Namespace) -> tuple[Trained, EvaluationTask]:
    """Read the checkpoint and the data set's index.

    Raises:
        ValueError: they cannot be read, or do not belong together.
    """
    from pipeline.data.dataset import EvalDataset
    from pipeline.data.loader import EVAL_SHARDS
    from pipeline.data.reader import ShardFolder
    from pipeline.evaluation.evaluator import EvaluationTask
    from pipeline.evaluation.features import check_features
    from pipeline.generation.trained import load_trained
    from pipeline.remote.location import locate_data_sets
    from shards.tokenizer import tokenizer_sha256

    trained = load_trained(*arguments.checkpoint)
    trained = replace(trained, config=with_options(trained.config, arguments))
    needed = [(arguments.shards, EVAL_SHARDS)]
    located = locate_data_sets(needed, arguments.cache_dir, arguments.cache_gb, "--cache")
    shards = ShardFolder(*located[0])
    if shards.manifest.tokenizer_sha256 != tokenizer_sha256(trained.tokenizer_path):
        raise ValueError(
            f"{arguments.shards}: built with another tokenizer than {arguments.checkpoint[0]} was "
            "trained with; build the shards with the checkpoint's tokenizer.json"
        )
    whose = ", ".join(map(str, arguments.checkpoint))
    check_features(shards, trained.captioner, trained.config.data.image_size, whose)
    task = EvaluationTask(
        EvalDataset(shards, trained.config.data.image_size),
        trained.config.generation,
        arguments.batch_size,
        arguments.workers,
        arguments.max_bad,
    )
    return trained, task


def _evaluate(
    world: World, trained: Trained, task: EvaluationTask, arguments: argparse.Namespace
) -> None:
    """Caption and score on all ranks; the main process writes and prints the results."""
    import torch

    from pipeline.data.worker_processes import start_worker_server
    from pipeline.distributed.phases import Phase
    from pipeline.distributed.process_group import join_processes
    from pipeline.distributed.watchdog import Watchdog
    from pipeline.evaluation.evaluator import evaluate
    from pipeline.metrics.scores import caption_scores
    from shards.atomic import write_atomic

    if task.workers:
        start_worker_server()
    accelerator = join_processes(world)
    torch.set_grad_enabled(False)
    captioner = trained.captioner.to(accelerator.device)
    with Watchdog(world) as watchdog:
        evaluation = evaluate(accelerator, world, captioner, task, watchdog)
        for text in evaluation.bad:
            print(f"left out: {text}", file=sys.stderr)
        if world.is_main:
            write_atomic(arguments.out, json.dumps(evaluation.results()).encode())
            with watchdog.phase(Phase.SCORE, 0):
                scores = caption_scores(evaluation.captions, evaluation.references)
            _print_scores(scores, len(evaluation.captions), task.generation, arguments)
    accelerator.end_training()


def _print_scores(
    scores: dict[str, float],
    num_images: int,
    generation: GenerationConfig,
    arguments: argparse.Namespace,
) -> None:
    if arguments.json:
        about = {
            "images": num_images,
            "checkpoints": list(map(str, arguments.checkpoint)),
            "generation": used_settings(generation),
        }
        print(json.dumps({**about, **scores}))
        return
    images = "1 image" if num_images == 1 else f"{num_images:,} images"
    print(f"Captions of {images}, scored against the reference captions of {arguments.shards}:")
    for name, value in scores.items():
        print(f"  {name:<8} {value:.4f}")
    members = len(arguments.checkpoint)
    ensemble = f"ensemble of {members} checkpoints, " if members > 1 else ""
    print(f"Generation: {ensemble}{describe(used_settings(generation))}.")
    print(f"The captions are in {arguments.out}.")


if __name__ == "__main__":
    sys.exit(main())
