"""The configuration of a run: the defaults, then YAML files, then options of the command line.

    --config configs/coco_densenet_lstm.yaml --optim.lr 1e-3

The docstrings of the dataclasses are the help text. `CommandParser` reads the options;
`jsonargparse` checks the types and writes the help. An unknown key, a wrong type or an impossible
combination is an error that names the key, before any process group or GPU starts. Nothing here
imports torch, so that `--help` answers within a second.
"""

import argparse
import sys
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from pipeline.config.rules import check_config
from pipeline.config.run import Config
from pipeline.config.settings_file import GivenSetting, as_yaml, read_settings
from shards.arguments import CommandParser, nearest_names

# Settings of earlier versions, which their configuration files and checkpoints hold.
REPLACED = {
    "optim.warmup_steps": "optim.warmup_epochs, in epochs",
    "train.eval_every": "train.eval_every_epochs, in epochs",
    "train.checkpoint_every": "train.checkpoint_every_epochs, in epochs",
    "monitor.num_pictures": "monitor.num_images",
    "model.encoder.freeze": "model.encoder.tune",
    "model.max_tokens": "generation.max_tokens",
}

TYPE_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}


def parse_config(arguments: list[str], prog: str = "train.py") -> Config:
    """Read the settings of a run from the arguments of a command line.

    Options win over `--config FILE`, and of several files the later one wins.

    Args:
        prog: name of the program, for `--help`.
    Raises:
        ValueError: an unknown key, a wrong type, an unreadable file, an option given twice, or
            values that cannot go together; the message names the key and the file.
        SystemExit: after `--help` and `--print_config`.
    """
    types, typed = _types(Config), _typed_parser(prog)
    sections = {key.rpartition(".")[0] for key in types} - {""}
    options = vars(_Options(types, typed).parse_args(arguments))
    paths, print_config = options.pop("config"), options.pop("print_config")
    settings = [setting for path in paths for setting in read_settings(Path(path), sections)]
    _check_keys(settings, types)
    chosen: dict[str, Any] = {}
    for setting in [*settings, *(GivenSetting(key, value, "") for key, value in options.items())]:
        _put(chosen, setting.key, _typed_value(typed, setting, types[setting.key]))
    values = typed.instantiate(typed.parse_object(chosen)).as_dict()
    config = Config(**{section.name: values[section.name] for section in fields(Config)})
    if print_config:
        print(dump_config(config), end="")
        sys.exit(0)
    check_config(config)
    return config


def load_config(path: Path) -> Config:
    """Read the config.yaml of a run folder or a checkpoint. Raises as `parse_config`."""
    return parse_config(["--config", str(path)])


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, defaults included; `load_config` reads it back."""
    return str(yaml.safe_dump(asdict(config), sort_keys=False))


def _types(section: Any, prefix: str = "") -> dict[str, Any]:
    """The key of each setting, such as `optim.lr`, with its type."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        key = prefix + name
        found |= _types(hint, f"{key}.") if is_dataclass(hint) else {key: hint}
    return found


def _typed_parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [-h] [--config FILE] [--SECTION.NAME VALUE ...]",
        description="Train an image captioner.",
        formatter_class=_TypesInWords,
        exit_on_error=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML file of settings; of several, the later one wins",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print all settings as YAML, and exit",
    )
    parser.add_class_arguments(Config)
    for action in parser._actions:
        if action.metavar == "CONFIG":  # hides `--data FILE` and the like, which are not accepted
            action.help = argparse.SUPPRESS
    return parser


class _TypesInWords(DefaultHelpFormatter):
    def _get_type_str(self, action: argparse.Action) -> str | None:
        """Called by jsonargparse; it would show `Literal['lstm', 'gru']`, or `str | null`."""
        hint = getattr(action, "_typehint", None) or action.type
        listed = get_origin(hint) is Literal or hint is bool  # the option shows {lstm,gru} itself
        return None if hint is None or listed else _expected(hint)


class _Options(CommandParser):
    """Takes the command line apart into keys and texts; the types are checked later."""

    def __init__(self, keys: dict[str, Any], typed: ArgumentParser) -> None:
        super().__init__(prog=typed.prog)
        self._typed = typed
        self.add_argument("--config", action="append", default=[])
        self.add_argument("--print_config", action="store_true")
        for key in keys:
            self.add_argument(f"--{key}", default=argparse.SUPPRESS)

    def format_help(self) -> str:
        return str(self._typed.format_help())

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def _unknown_message(self) -> str:
        names = [text.partition("=")[0].removeprefix("--") for text in self._unknown]
        replaced = [key for key in (name.replace("-", "_") for name in names) if key in REPLACED]
        if replaced:
            return f"--{replaced[0]} is now --{REPLACED[replaced[0]]}"
        return super()._unknown_message()


def _check_keys(settings: list[GivenSetting], types: dict[str, Any]) -> None:
    """Refuse the keys of a file that no setting has."""
    unknown = [setting for setting in settings if setting.key not in types]
    replaced = [setting for setting in unknown if setting.key in REPLACED]
    if replaced:
        renamed = "; ".join(f"{key} is now {REPLACED[key]}" for key, _, _ in replaced)
        raise ValueError(
            f"{replaced[0].source}the file was written by or for an earlier version of Capstream: "
            f"{renamed}; rewrite these settings, or use that version to read a checkpoint"
        )
    if unknown:
        nearest = nearest_names(unknown[0].key, list(types))
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else "--help lists all settings"
        raise ValueError(f"{unknown[0].source}{unknown[0].key}: unknown setting; {hint}")


def _typed_value(typed: ArgumentParser, setting: GivenSetting, hint: Any) -> Any:
    nested: dict[str, Any] = {}
    _put(nested, setting.key, setting.value)
    try:
        return typed.parse_object(nested, defaults=False)[setting.key]
    except argparse.ArgumentError:
        value = setting.value
        given = value if isinstance(value, str) else as_yaml(value)
        raise ValueError(
            f"{setting.source}{setting.key}: expected {_expected(hint)}, not `{given}`"
        ) from None


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
    settings[name] = value


def _expected(hint: Any) -> str:
    """A type in words, such as "a whole number or null"."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is UnionType:
        return " or ".join(map(_expected, get_args(hint)))
    return TYPE_NAMES[hint]
