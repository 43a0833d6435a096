"""Print which images make up each step of a run: python -m pipeline.order --shards DIR ..."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator

from shards.arguments import CommandParser


def main(prog: str = "python -m pipeline.order") -> int:
    """Command line. Returns the exit code."""
    arguments = _parser(prog).parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end without an error in `... | head`
    try:
        for step, ids in _ids_of_steps(arguments):
            print(json.dumps({"step": step, "ids": ids}) if arguments.json else f"{step}: {ids}")
    except (ValueError, OSError) as error:
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser(prog: str) -> CommandParser:
    parser = CommandParser(
        prog=prog,
        description="Print the image ids of the global batches of a run, in slot order. It reads "
        "the manifest and the index of the shards, but no image.",
    )
    parser.add_argument("--shards", required=True, help="path or URL of the training shards")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument("--global_batch_size", type=int, default=48, help="data.global_batch_size")
    parser.add_argument("--shuffle_block", type=int, default=16, help="data.shuffle_block")
    parser.add_argument("--streams", type=int, default=1, help="data.streams")
    parser.add_argument(
        "--first_step", type=int, default=0, help="first step to print (default: 0)"
    )
    parser.add_argument("--steps", type=int, default=10, help="number of steps to print")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each step")
    return parser


def _ids_of_steps(arguments: argparse.Namespace) -> Iterator[tuple[int, list[int | str]]]:
    from pipeline.config.data import MAX_STREAMS
    from pipeline.data.sample_order import Order, global_batch
    from shards.format.index import read_index
    from shards.format.manifest import read_manifest
    from shards.format.names import image_id_of
    from shards.storage import location

    for name, least in (
        ("global_batch_size", 1), ("shuffle_block", 1), ("streams", 1), ("first_step", 0),
        ("steps", 1),
    ):  # fmt: skip
        value = getattr(arguments, name)
        if not least <= value < 1 << 31:
            raise ValueError(f"--{name}: {value}: must be from {least} to {(1 << 31) - 1}")
    if arguments.streams > MAX_STREAMS:
        raise ValueError(f"--streams: {arguments.streams}: must be from 1 to {MAX_STREAMS}")
    if arguments.global_batch_size % arguments.streams:
        raise ValueError("--streams: must divide --global_batch_size, as in training")
    folder = location(arguments.shards)
    manifest, index = read_manifest(folder), read_index(folder)
    if len(index) == 0:
        raise ValueError(f"{folder}: the data set {manifest.name!r} is empty")
    order = Order.of(manifest, arguments.seed, arguments.shuffle_block, arguments.streams)
    last_step = arguments.first_step + arguments.steps
    for step in range(arguments.first_step, last_step):
        batch_size = arguments.global_batch_size
        slots = global_batch(order, step, batch_size, last_step * batch_size)
        yield step, [image_id_of(index.key(sample)) for _, sample in slots.tolist()]


if __name__ == "__main__":
    sys.exit(main())
