"""Which settings a run changes when it is resumed."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.run import Config
from pipeline.config.settings_file import as_yaml


def changed_settings(before: Path, after: Config) -> list[str]:
    """The settings that differ from those of an earlier part of the run.

    Most settings may change from one part of a run to the next, but the user should see it: another
    number of epochs, for instance, changes the learning rate of all steps to come.

    Args:
        before: config.yaml of a checkpoint. Settings that it lacks or has beside those of this
            version are left out.
        after: the settings now.
    Returns:
        Lines such as `train.epochs: 3, now 6`.
    """
    then = dict(_flat(yaml.safe_load(before.read_bytes())))
    return [
        f"{key}: {as_yaml(then[key])}, now {as_yaml(value)}"
        for key, value in _flat(asdict(after))
        if key in then and then[key] != value
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
