"""Options of commands that caption: the checkpoints, and settings that replace theirs.

No torch here: the options are declared before the command imports it.
"""

import argparse
import inspect
import re
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline.config.generation import GenerationConfig, used_settings
from pipeline.config.rules import check_config
from pipeline.config.run import Config

BOOLEANS = {"true": True, "false": False}


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """Declare --checkpoint, given several times for an ensemble."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="folder of a checkpoint; several options make an ensemble, which averages the "
        "probabilities of its members",
    )


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Declare an option for each setting `generation.NAME`: --NAME."""
    group = parser.add_argument_group(
        "generation",
        "The settings generation.*. Without these options a checkpoint is decoded as it was "
        "validated.",
    )
    helps = _help_texts()
    for name, hint in get_type_hints(GenerationConfig).items():
        kind = get_args(hint)[0] if isinstance(hint, UnionType) else hint
        choices: tuple[str, ...] | None = None
        if get_origin(kind) is Literal:
            kind, choices = str, get_args(kind)
        elif kind is bool:
            kind, choices = str, tuple(BOOLEANS)
        group.add_argument(f"--{name}", type=kind, choices=choices, help=helps[name])


def with_options(config: Config, arguments: argparse.Namespace) -> Config:
    """The configuration of a checkpoint with the options that were given.

    If they name another method, settings that this method does not use get their defaults.

    Raises:
        ValueError: an option has an impossible value, or the method does not use it.
    """
    given: dict[str, Any] = {}
    for name, hint in get_type_hints(GenerationConfig).items():
        value = getattr(arguments, name)
        if value is not None:
            given[name] = BOOLEANS[value] if hint is bool else value
    kept = used_settings(config.generation, given.get("method"))
    chosen = replace(config, generation=GenerationConfig(**{**kept, **given}))
    try:
        check_config(chosen)
    except ValueError as error:
        raise ValueError(str(error).replace("generation.", "--")) from None
    return chosen


def _help_texts() -> dict[str, str]:
    """The help of each setting, from the docstring of `GenerationConfig`."""
    text = inspect.getdoc(GenerationConfig) or ""
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(words.split()).replace("%", "%%") for name, words in entries}
