"""Print which images make up which step: python -m pipeline.order --shards DIR ..."""

import argparse
import json
import signal
import sys
from collections.abc import Iterator

from pipeline.data.sample_order import Order, global_batch
from shards.format import image_id_of, read_index, read_manifest
from shards.storage import location


def main() -> int:
    """Print which images make up which step. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.order",
        description="The image ids of any global batch of a run, in slot order; reads no image.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--shards", required=True, help="folder or URL of the training shards")
    parser.add_argument("--seed", type=int, default=0, help="the run's seed")
    parser.add_argument("--global-batch-size", type=int, default=48)
    parser.add_argument("--shuffle-block", type=int, default=16, help="data.shuffle_block")
    parser.add_argument("--streams", type=int, default=1, help="data.streams")
    parser.add_argument("--first-step", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10, help="how many")
    parser.add_argument("--json", action="store_true", help="a JSON object a step")
    arguments = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has seen enough
    try:
        for step, ids in _ids_of_steps(arguments):
            print(json.dumps({"step": step, "ids": ids}) if arguments.json else f"{step}: {ids}")
    except (ValueError, OSError) as error:
        print(f"pipeline.data.sample_order: {error}", file=sys.stderr)
        return 2
    return 0


def _ids_of_steps(arguments: argparse.Namespace) -> Iterator[tuple[int, list[int | str]]]:
    for name, least in (
        ("global_batch_size", 1), ("shuffle_block", 1), ("streams", 1), ("first_step", 0),
        ("steps", 1),
    ):  # fmt: skip
        if not least <= getattr(arguments, name) < 1 << 31:
            raise ValueError(f"--{name.replace('_', '-')}: must be {least} or more, and a count")
    if arguments.global_batch_size % arguments.streams:
        raise ValueError("--streams: must divide --global-batch-size, as in training")
    folder = location(arguments.shards)
    manifest, index = read_manifest(folder), read_index(folder)
    if len(index) == 0:
        raise ValueError(f"{folder}: the data set {manifest.name!r} is empty")
    order = Order(
        tuple(shard.num_samples for shard in manifest.shards),
        manifest.digest,
        arguments.seed,
        arguments.shuffle_block,
        arguments.streams,
    )
    last_step = arguments.first_step + arguments.steps
    for step in range(arguments.first_step, last_step):
        batch_size = arguments.global_batch_size
        slots = global_batch(order, step, batch_size, last_step * batch_size)
        yield step, [image_id_of(index.key(sample)) for _, sample in slots.tolist()]


if __name__ == "__main__":
    sys.exit(main())
