"""Pack captioned images into tar shards, and check, show and index shard folders."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from shards.arguments import CommandParser
from shards.messages import system_error
from shards.storage import location

HOW_TO_CONTINUE = "; finished shards are kept; run the same command again to continue"


class _Terminated(BaseException):
    """SIGTERM arrived, which a scheduler sends before it kills."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m shards") -> int:
    """Run one command.

    Args:
        argv: the arguments; None takes those of the process.
        prog: the name of the program in help and errors.
    Returns:
        The exit code: 0 done, 1 faults found, 2 unusable input or a failing machine, 130, 141 and
        143 stopped by SIGINT, by the end of who reads the output, and by SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    arguments = _parser(prog).parse_args(argv)
    say = f"shards {arguments.command}:"
    hint = HOW_TO_CONTINUE if arguments.command == "build" else ""
    try:
        from shards.commands import run  # takes a second: after --help and wrong options

        code = run(arguments)
        sys.stdout.flush()  # here, where its error is answered
        return code
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        print(say, system_error(error, arguments), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{say} interrupted{hint}", file=sys.stderr)
        return 130
    except _Terminated:
        print(f"{say} terminated{hint}", file=sys.stderr)
        return 143


def _terminate(number: int, frame: Any) -> NoReturn:
    raise _Terminated


def _location(text: str) -> Path:
    if not text:  # such as "$UNSET" in a script; it would be the current folder
        raise argparse.ArgumentTypeError("must not be empty")
    try:
        return location(text)
    except ValueError as error:  # argparse would hide the reason
        raise argparse.ArgumentTypeError(str(error)) from None


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # a scheduler may have given this process some CPUs only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, not {text}")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, not {text}")
    return value


def _parser(prog: str) -> CommandParser:
    parser = CommandParser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, more: str = "") -> CommandParser:
        sub: CommandParser = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip()
        )
        return sub

    _add_sample(command("sample", "draw a captioned sample data set in COCO's layout"))
    _add_split(
        command(
            "split",
            "divide an annotation file into train, val and test files of the same format",
            "All rows of an image go to the same file, and it stays in that file when other "
            "images are added. The files are OUT/train.csv, OUT/val.csv and OUT/test.csv, or end "
            "in .tsv, .jsonl or .json.",
        )
    )
    _add_tokenizer(
        command(
            "tokenizer",
            "make a tokenizer from captions",
            "Use the captions of the training set only.",
        )
    )
    _add_build(
        command(
            "build",
            "pack images and tokenised captions into shards",
            "A build that was stopped continues when the same command is run again.",
        )
    )
    _add_finalize(
        command(
            "finalize",
            "write the manifest and index once all shards are packed",
            "Only builds with --job_index need it; other builds do it themselves.",
        )
    )
    _add_index(
        command(
            "index",
            "index existing WebDataset tars in place",
            "The tars are not changed. Each sample needs a .jpg and a .txt or .json; samples that "
            "the trainer cannot read are rejected, and `build --webdataset` packs most of them.",
        )
    )
    _add_verify(
        command(
            "verify",
            "read every byte of a data set again and report each fault",
            "The exit code is 1 if there are faults.",
        )
    )
    _add_show(command("show", "print samples of a data set, or write them to a page with images"))
    return parser


def _add_sample(sub: CommandParser) -> None:
    sub.add_argument("--out", type=Path, required=True, help="folder to write")
    sub.add_argument(
        "--images",
        type=_count,
        default=2000,
        help="number of images; one in ten is a validation image",
    )
    sub.add_argument("--seed", type=int, default=0, help="another seed draws other images")


def _add_split(sub: CommandParser) -> None:
    sub.add_argument(
        "--annotations",
        type=_location,
        required=True,
        metavar="FILE",
        help="table (.csv, .tsv, .jsonl), COCO JSON or Karpathy JSON",
    )
    sub.add_argument("--out", type=_location, required=True, help="folder to write")
    sub.add_argument("--val", type=_share, default=0.1, help="share of the images in val")
    sub.add_argument("--test", type=_share, default=0.1, help="share of the images in test")
    sub.add_argument("--seed", type=int, default=0, help="another seed gives another division")
    _add_image_column(sub)
    sub.add_argument(
        "--overwrite", action="store_true", help="replace files in OUT that have other contents"
    )
    sub.add_argument("--json", action="store_true", help="print the counts as JSON")


def _add_tokenizer(sub: CommandParser) -> None:
    _add_source(sub)
    sub.add_argument("--out", type=_location, required=True, help="tokenizer.json to write")
    sub.add_argument(
        "--kind", choices=("word", "bpe"), default="word", help="whole words, or byte-level BPE"
    )
    sub.add_argument(
        "--min_count",
        type=_count,
        default=5,
        help="words that occur less often become UNK; with bpe, pairs of pieces that occur less "
        "often are not merged",
    )
    sub.add_argument(
        "--vocab_size", type=_count, default=8000, help="largest number of entries (bpe)"
    )
    sub.add_argument("--keep_case", action="store_true", help='keep "Dog" and "dog" apart')
    _add_max_unk(sub, "warn if more than this share of the tokens is UNK")


def _add_build(sub: CommandParser) -> None:
    sub.add_argument("--images", type=_location, help="folder or URL that holds the image files")
    _add_source(sub)
    sub.add_argument("--tokenizer", type=_location, required=True, help="tokenizer.json")
    sub.add_argument("--out", type=_location, required=True, help="folder or URL of the shards")
    sub.add_argument(
        "--name", default="train", help="name of the set, used in its file names: NAME-000000.tar"
    )
    sub.add_argument(
        "--samples_per_shard", type=_count, default=1000, help="largest number of images in a tar"
    )
    sub.add_argument(
        "--resize_short",
        type=int,
        default=256,
        help="shrink larger images to this short side, in pixels; 0 keeps the original size. "
        "A JPEG that is not shrunk keeps its bytes. PNG, WebP, CMYK images and images that EXIF "
        "rotates are always encoded as upright RGB JPEG",
    )
    sub.add_argument("--quality", type=int, default=90, help="JPEG quality of encoded images")
    _add_limits(sub)
    sub.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="pack in processes of this machine, or on a Ray cluster",
    )
    sub.add_argument(
        "--workers", type=_count, default=_num_cpus(), help="number of packing processes (local)"
    )
    sub.add_argument(
        "--ray_address",
        help="address of the Ray cluster; without it RAY_ADDRESS, or a new one on this machine",
    )
    sub.add_argument(
        "--job_index",
        type=int,
        help="pack only the share of this member, from 0, of an array of --job_count jobs; run "
        "`finalize` when all members are done",
    )
    sub.add_argument("--job_count", type=_count, help="number of jobs in the array")
    _add_json(sub)


def _add_finalize(sub: CommandParser) -> None:
    sub.add_argument("dir", type=_location, help="shard folder")
    sub.add_argument(
        "--tokenizer",
        type=_location,
        help="the build's tokenizer.json; without it the one that the jobs left in the folder",
    )
    _add_limits(sub)
    _add_json(sub)


def _add_index(sub: CommandParser) -> None:
    sub.add_argument("dir", type=_location, help="folder of tars")
    sub.add_argument("--tokenizer", type=_location, required=True, help="tokenizer.json")
    _add_limits(sub)
    _add_json(sub)


def _add_verify(sub: CommandParser) -> None:
    sub.add_argument("dir", type=_location, help="shard folder")
    sub.add_argument("--fast", action="store_true", help="check sizes and sidecars, read no tar")
    sub.add_argument("--json", action="store_true", help="print the faults as JSON")


def _add_show(sub: CommandParser) -> None:
    sub.add_argument("dir", type=_location, help="shard folder")
    sub.add_argument("--limit", type=_count, default=3, help="number of samples")
    sub.add_argument("--html", type=Path, metavar="FILE", help="write a page with the images")


def _add_source(sub: CommandParser) -> None:
    which = sub.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--annotations",
        type=_location,
        action="append",
        default=[],
        metavar="FILE",
        help="captions: COCO or Karpathy JSON, or a table (.csv, .tsv, .jsonl); may be repeated",
    )
    which.add_argument(
        "--webdataset",
        type=_location,
        metavar="FOLDER",
        help="folder of tars with images and .txt or .json captions",
    )
    sub.add_argument(
        "--split",
        action="append",
        default=[],
        help="split to take from Karpathy's files; may be repeated",
    )
    _add_image_column(sub)
    sub.add_argument(
        "--caption_column",
        action="append",
        default=[],
        help="column or key of a table that holds captions (default: caption); may be repeated: "
        "the captions of all these columns are used",
    )


def _add_image_column(sub: CommandParser) -> None:
    sub.add_argument(
        "--image_column",
        default="image",
        help="column or key of a table that holds the file names of the images",
    )


def _add_limits(sub: CommandParser) -> None:
    sub.add_argument(
        "--max_rejected",
        type=_share,
        default=0.01,
        help="fail if more than this share of the images or captions is rejected",
    )
    _add_max_unk(sub, "fail if more than this share of the tokens is UNK")


def _add_max_unk(sub: CommandParser, text: str) -> None:
    sub.add_argument("--max_unk", type=_share, default=0.05, help=text)


def _add_json(sub: CommandParser) -> None:
    sub.add_argument("--json", action="store_true", help="print the report as JSON")
