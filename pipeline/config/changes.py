"""Which settings a run changes when it is resumed, and which must be the same on all ranks."""

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


# Settings that may differ from machine to machine: where things are, and what is shown.
OF_A_MACHINE = (
    *("run_dir", "data.train", "data.val", "data.cache_dir", "data.cache_gb", "data.workers"),
    *("model.encoder.weights", "monitor."),
)


def shared_settings(config: Config) -> dict[str, Any]:
    """The settings that must be the same on all ranks, by their dotted names.

    Another learning rate or seed on one rank would give other weights there, without an error.
    """
    return {key: value for key, value in _flat(asdict(config)) if not key.startswith(OF_A_MACHINE)}


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
