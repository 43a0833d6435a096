"""The whole configuration of a run: defaults here, YAML over them, dotted flags over both.

    --config configs/coco_densenet_lstm.yaml --optim.lr 1e-3

The docstrings are the help text. An unknown key, a wrong type or an impossible combination is an
error that names the key, before any process group or GPU starts.
"""

from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import yaml
from jsonargparse import ArgumentParser

from pipeline.config.rules import check_config
from pipeline.config.run import Config


class _Parser(ArgumentParser):
    """Raises ValueError where argparse would print a usage text and exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(" ".join(message.split()))


def _parser() -> _Parser:
    parser = _Parser(prog="train.py", description="Train an image captioner.")
    parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_class_arguments(Config)
    return parser


def parse_config(arguments: list[str]) -> Config:
    """Read settings from command line arguments, `--config FILE` among them.

    Raises:
        ValueError: an unknown key, a wrong type, a missing file, or values that cannot go together;
            the message names the key.
        SystemExit: after `--help`.
    """
    parser = _parser()
    settings = parser.instantiate(parser.parse_args(arguments)).as_dict()
    settings.pop("config")
    config = Config(**settings)
    check_config(config)
    return config


def load_config(path: Path) -> Config:
    """Read the config.yaml that lies beside a run or in a checkpoint. Raises as `parse_config`."""
    return parse_config(["--config", str(path)])


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, defaults included; `load_config` reads it back."""
    return str(yaml.safe_dump(asdict(config), sort_keys=False))
