"""Caption image files.

The images are files, folders (with their subfolders) and quoted patterns such as 'photos/**/*.jpg'.
Captions are printed as they come, or go to the file of --out or to .txt files beside the images.
With --out and --txt a command that was stopped continues when it is run again, and
`accelerate launch -m pipeline.caption` captions on all processes.

Exit code: 0; 1 if an image could not be read (each is named on stderr) or the captions could not be
written; 2 for unusable input.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from pipeline.generation.options import add_checkpoint_option, add_generation_options
from pipeline.runtime.errors import usage_errors
from pipeline.runtime.world import World, read_world
from shards.arguments import CommandParser

FORMATS = (".json", ".csv", ".jsonl")


def main(prog: str = "python -m pipeline.caption") -> int:
    """Command line. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends at once, without a stack trace
    with usage_errors("caption"):
        world = read_world()
    with usage_errors("caption", world):
        arguments = _parser(prog).parse_args()
        _check(arguments, world)
        # Imported here, since it takes seconds: --help and a wrong option are answered before the
        # image libraries are imported, and a wrong path before torch is.
        from pipeline.evaluation.image_files import list_images

        images = list_images(arguments.images, arguments.from_list)

        from pipeline.evaluation.caption_job import CaptionJob

        job = CaptionJob(arguments, images, world)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names in bytes
    try:
        return job.run()
    except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, or a folder that must not be written to
        print(f"caption: {error}", file=sys.stderr)
    return 1


def _parser(prog: str) -> CommandParser:
    parser = CommandParser(
        prog=prog,
        exit_on_error=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint_option(parser)
    parser.add_argument(
        "images",
        nargs="*",
        help="image files (JPEG, PNG, WebP), folders, and quoted patterns; hidden files of folders "
        "and patterns are left out",
    )
    parser.add_argument(
        "--from",
        dest="from_list",
        metavar="FILE",
        help="also caption the images listed in this file, one path a line; - reads standard input",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--json",
        action="store_true",
        help="print JSON Lines: image, caption; with --num_captions above 1 also captions, a list "
        "of all with their scores",
    )
    output.add_argument(
        "--out",
        type=Path,
        help="write this file: .json (COCO results: image_id is the number that is the file name, "
        "as 139 of 000000000139.jpg, or else the path) or .csv with the best caption of each "
        "image, or .jsonl with what --json prints. Part files beside it, OUT.rank0.part, hold the "
        "captions until all are there",
    )
    output.add_argument(
        "--txt",
        action="store_true",
        help="write NAME.txt beside each image; an image that has one already is left out",
    )
    parser.add_argument(
        "--sheet",
        type=Path,
        help="also draw the first 64 images with their captions, as .png or .jpg",
    )
    parser.add_argument(
        "--attention",
        type=Path,
        metavar="FILE.png",
        help="also draw where the decoder looked for each token of the captions of the first 16 "
        "images; for one checkpoint whose decoder has attention",
    )
    add_generation_options(parser)
    return parser


def _check(arguments: argparse.Namespace, world: World) -> None:
    """Raises ValueError where options cannot be used, or not together."""
    if not arguments.images and not arguments.from_list:
        raise ValueError("no images: give files, folders or patterns, or --from")
    if arguments.sheet and arguments.sheet.suffix.lower() not in (".png", ".jpg"):
        raise ValueError(f"--sheet: {arguments.sheet}: must end in .png or .jpg")
    if arguments.attention and arguments.attention.suffix.lower() != ".png":
        raise ValueError(f"--attention: {arguments.attention}: must end in .png")
    if arguments.attention and arguments.attention == arguments.sheet:
        raise ValueError(f"--attention: {arguments.attention}: is the file of --sheet as well")
    if arguments.attention and len(arguments.checkpoint) > 1:
        raise ValueError(
            "--attention: several checkpoints look at different positions; give one --checkpoint"
        )
    if arguments.out and ":/" in str(arguments.out):  # a path shortens :// to this
        raise ValueError(f"--out: {arguments.out}: must be a file on a file system")
    if arguments.out and arguments.out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out: {arguments.out}: must end in {', '.join(FORMATS)}")
    if arguments.out and arguments.out.is_dir():
        raise ValueError(f"--out: {arguments.out}: is a folder; name a file in it")
    if world.world_size > 1 and not (arguments.out or arguments.txt):
        raise ValueError("several processes need --out FILE or --txt")
    if world.world_size > 1 and arguments.from_list == "-":
        raise ValueError("--from -: several processes cannot share standard input; name a file")


if __name__ == "__main__":
    sys.exit(main())
