"""The console command: `capstream COMMAND --help`. This file alone lists the commands.

Each command runs the same module as `python -m MODULE`.
"""

import os
import signal
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from capstream.shipped import find_shipped

RECIPE_DIR = Path(__file__).parent / "configs"

LAUNCHER_HELP = """
options of the launcher:
  `capstream {name}` also takes the options of `accelerate launch`, before or after its own:
  --num_processes N, --max_restarts N, --num_machines M, ... (`accelerate launch --help`).
  --config_file cpu|gpus|machines names a configuration that is installed with Capstream.
"""


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Args:
        module: what runs, as `python -m` takes it.
        help: one line.
        launcher: `always` starts processes; `asked` starts them if a launcher option is given, and
            otherwise runs in this process; `never` runs in this process.
    """

    module: str
    help: str
    launcher: str = "never"


COMMANDS = {
    "sample": Command("shards", "draw a captioned sample data set in COCO's layout"),
    "tokenizer": Command("shards", "make a tokenizer from captions"),
    "split": Command(
        "shards", "divide an annotation file into train, val and test files of the same format"
    ),
    "build": Command("shards", "pack images and tokenised captions into shards"),
    "finalize": Command("shards", "write the manifest and index once all shards are packed"),
    "index": Command("shards", "index existing WebDataset tars in place"),
    "verify": Command("shards", "read every byte of a data set again and report each fault"),
    "show": Command("shards", "print samples of a data set, or write them to a page with images"),
    "order": Command("pipeline.order", "print which images make up any training step"),
    "features": Command(
        "pipeline.features", "encode a data set once with a frozen backbone", launcher="asked"
    ),
    "train": Command("pipeline.train", "train a captioner", launcher="always"),
    "evaluate": Command("pipeline.evaluate", "caption and score a data set", launcher="asked"),
    "caption": Command("pipeline.caption", "caption image files", launcher="asked"),
    "words": Command("pipeline.words", "map the word embeddings of a checkpoint"),
}


def _end_quietly_without_reader() -> None:
    """End without an error where the reader of the help ends first, as in `... | head`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def main() -> int:
    """Run one command. Returns the exit code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        _end_quietly_without_reader()
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"capstream {version('capstream')}")
        return 0
    name, *arguments = arguments
    if name not in COMMANDS:
        print(f"capstream: {name}: no such command; --help lists the commands", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    if command.launcher == "never":
        return _run_here(name, command.module, arguments)
    if "-h" in arguments or "--help" in arguments:
        _end_quietly_without_reader()
        code = _run_here(name, command.module, ["--help"])
        print(LAUNCHER_HELP.format(name=name), end="")
        if name == "train":
            recipes = ", ".join(sorted(path.stem for path in RECIPE_DIR.glob("*.yaml")))
            print(f"\ninstalled recipes, for --config NAME:\n  {recipes}")
        return code
    return _launch(name, command, arguments)


def _run_here(name: str, module: str, arguments: list[str]) -> int:
    """Run a command in this process. Returns the exit code."""
    if module == "shards":
        from shards.cli import main as shards_main

        return shards_main([name, *arguments], prog="capstream")
    sys.argv = [module, *arguments]
    try:
        return int(import_module(module).main(f"capstream {name}"))
    except SystemExit as end:  # after --help, and after an error that was printed
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _launch(name: str, command: Command, arguments: list[str]) -> int:
    # Imported for these commands only: the others need no launcher.
    from launch.launcher import supervise
    from launch.processes import LAUNCH_DIR, launcher_options, split_options, start_module

    if not {"", str(Path.cwd())} & set(sys.path):
        # The processes import what this one imports, not a package of the same name in this folder.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    arguments = find_shipped(arguments, "--config", RECIPE_DIR)
    arguments = find_shipped(arguments, "--config_file", LAUNCH_DIR)

    def start() -> None:
        options, rest = split_options(arguments, launcher_options())
        start_module(command.module, options, rest, say=True)

    prints_only = {"--print_config", "--print-config"} & set(arguments)
    if command.launcher == "always" and not prints_only:
        return supervise(start)
    options, rest = split_options(arguments, launcher_options())
    return supervise(start) if options else _run_here(name, command.module, rest)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: capstream COMMAND ...",
            "",
            "Train image captioners from WebDataset shards.",
            "",
            "commands:",
            *lines,
            "",
            "`capstream COMMAND --help` lists the options of a command.",
        ]
    )
