"""Command line of the shard builder: `python -m shards COMMAND --help`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from shards import commands
from shards.arguments import CommandParser
from shards.storage import location

Arguments = argparse.Namespace

GO_ON = "finished shards are kept, the same command goes on from there"


class _Terminated(BaseException):
    """SIGTERM arrived: what a scheduler sends before it kills."""


def main() -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 faults found, 2 unusable input or a machine that fails, 130 and
        143 stopped by SIGINT and SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    arguments = _parser().parse_args()
    say = f"shards {arguments.command}:"
    try:
        return int(arguments.run(arguments))
    except (ValueError, OSError) as error:
        print(say, error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{say} interrupted; {GO_ON}", file=sys.stderr)
        return 130
    except _Terminated:
        print(f"{say} terminated; {GO_ON}", file=sys.stderr)
        return 143


def _terminate(number: int, frame: Any) -> NoReturn:
    raise _Terminated


def _location(text: str) -> Path:
    try:
        return location(text)
    except ValueError as error:  # argparse would keep the reason to itself
        raise argparse.ArgumentTypeError(str(error)) from None


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # a scheduler may have given some of them only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, not {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m shards", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Arguments], int], text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command("sample", commands.sample, "draw a captioned sample data set in COCO's layout")
    sub.add_argument("--out", type=Path, required=True, help="folder to write")
    sub.add_argument("--images", type=int, default=2000, help="how many; a tenth is held out")
    sub.add_argument("--seed", type=int, default=0)

    sub = command("tokenizer", commands.tokenizer, "make a vocabulary from captions")
    _add_source(sub)
    sub.add_argument("--out", type=_location, required=True, help="tokenizer.json to write")
    sub.add_argument("--kind", choices=("word", "bpe"), default="word")
    sub.add_argument(
        "--min_count", type=_count, default=5, help="rarer words become UNK, rarer pairs stay apart"
    )
    sub.add_argument("--vocab_size", type=_count, default=8000, help="of BPE: entries at the most")

    sub = command("build", commands.build, "pack images and tokenised captions into shards")
    sub.add_argument("--images", type=_location, help="folder or URL of the image files")
    _add_source(sub)
    sub.add_argument("--tokenizer", type=_location, required=True, help="tokenizer.json")
    sub.add_argument("--out", type=_location, required=True, help="folder or URL of the shards")
    sub.add_argument("--name", default="train", help="file name of the tars: NAME-000000.tar")
    sub.add_argument("--samples_per_shard", type=_count, default=1000)
    sub.add_argument(
        "--resize_short",
        type=int,
        default=256,
        help="shrink larger images to this short side, in pixels; 0 keeps the original size. "
        "A JPEG that is not shrunk keeps its bytes; PNG, WEBP, CMYK and images that EXIF turns "
        "are encoded as upright RGB JPEG whatever their size",
    )
    sub.add_argument("--quality", type=int, default=90, help="JPEG quality of encoded images")
    _add_limits(sub)
    sub.add_argument("--executor", choices=("local", "ray"), default="local")
    sub.add_argument("--workers", type=_count, default=_num_cpus(), help="processes (local)")
    sub.add_argument("--ray_address", help="of a Ray cluster; else RAY_ADDRESS, or one here")
    sub.add_argument(
        "--job_index",
        type=int,
        help="do only this share of the shards, from 0, of a scheduler's array of --job_count; "
        "`finalize` closes the data set when all are done",
    )
    sub.add_argument("--job_count", type=_count, help="members of the array")
    sub.add_argument("--json", action="store_true", help="print the report as JSON")

    sub = command("finalize", commands.finish, "close a build whose every shard is done")
    sub.add_argument("dir", type=_location)
    sub.add_argument(
        "--tokenizer", type=_location, required=True, help="the build's tokenizer.json"
    )
    _add_limits(sub)
    sub.add_argument("--json", action="store_true", help="print the report as JSON")

    sub = command("index", commands.index, "make tars made by others a data set, as they are")
    sub.add_argument("dir", type=_location, help="folder of tars of .jpg with .txt or .json")
    sub.add_argument("--tokenizer", type=_location, required=True, help="tokenizer.json")
    _add_limits(sub)
    sub.add_argument("--json", action="store_true", help="print the report as JSON")

    sub = command("verify", commands.check, "read a data set again, every byte; name each fault")
    sub.add_argument("dir", type=_location)
    sub.add_argument("--fast", action="store_true", help="check sizes and sidecars, read no tar")
    sub.add_argument("--json", action="store_true", help="print the faults as JSON")

    sub = command("show", commands.display, "print samples of a data set")
    sub.add_argument("dir", type=_location)
    sub.add_argument("--limit", type=_count, default=3, help="how many samples")
    sub.add_argument("--html", type=Path, metavar="FILE", help="write a page with the images")
    return parser


def _add_source(sub: argparse.ArgumentParser) -> None:
    which = sub.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--annotations",
        type=_location,
        help="captions: COCO or Karpathy JSON, or a table of .csv, .tsv, .jsonl",
    )
    which.add_argument(
        "--webdataset",
        type=_location,
        help="folder of tars of images and .txt or .json captions",
    )
    sub.add_argument("--split", action="append", default=[], help="of Karpathy's files; repeatable")
    sub.add_argument("--image_column", default="image", help="of tables: the images' file names")
    sub.add_argument("--caption_column", default="caption", help="of tables: the captions")


def _add_limits(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--max_rejected", type=_share, default=0.01, help="share that may be quarantined"
    )
    sub.add_argument("--max_unk", type=_share, default=0.05, help="share of tokens that may be UNK")
