"""Which processes `capstream train` starts: its arguments, split and completed for the launcher."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from launch.launcher import accelerate_launch, launcher_parser

LAUNCH_DIR = Path(__file__).parent

# `capstream` decides these itself: it starts a module of its own.
NOT_FOR_USERS = {"--help", "--module", "--no_python"}


def split_options(
    arguments: list[str], takes_value: Mapping[str, bool]
) -> tuple[list[str], list[str]]:
    """Separate the launcher's options from those of the program that it starts.

    Args:
        arguments: a command line that has both, in any order.
        takes_value: the launcher's options, spelt with underscores, and whether each has a value.

    Returns:
        The launcher's options, each as `--name=value` or `--name`, and all other arguments.
    """
    options, rest = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1)
        if not argument.startswith("--") or name not in takes_value:
            rest.append(argument)
        elif takes_value[name] and not equals:
            value = next(remaining, None)  # type: ignore[assignment]
            options.append(name if value is None else f"{name}={value}")
        else:
            options.append(name + equals + value)
    return options, rest


def launcher_options() -> dict[str, bool]:
    """The options of `accelerate launch`, and whether each has a value; from its own parser."""
    actions = launcher_parser()._option_string_actions
    return {
        name: action.nargs != 0
        for name, action in actions.items()
        if name.startswith("--") and "-" not in name[2:] and name not in NOT_FOR_USERS
    }


def completed(options: list[str], num_gpus: int) -> list[str]:
    """Add the configuration file and the number of processes where the options lack them.

    `accelerate launch` alone starts a single process for `--num_processes 2` without GPUs, and
    refuses a configuration file without a number of processes.

    Args:
        options: the launcher's, as `split_options` returns them.
        num_gpus: of this machine.

    Raises:
        ValueError: the configuration file does not exist, or an option has no effect here.
    """
    config_path = _value(options, "--config_file")
    num_machines = _value(options, "--num_machines") or "1"
    if any(option.startswith("--mixed_precision") for option in options):
        raise ValueError(
            "--mixed_precision: has no effect; for training, set train.precision, such as bf16"
        )
    if "--cpu" in options and (config_path is not None or num_machines != "1"):
        raise ValueError(  # accelerate starts one process whatever the number asked for
            "--cpu: works on one machine and without --config_file only; otherwise give "
            "--config_file a file with `distributed_type: MULTI_GPU` and `use_cpu: true`, such as "
            f"{LAUNCH_DIR / 'cpu.yaml'}"
        )
    if config_path is None:
        if "--cpu" in options:  # the file says so too, and starts several processes as well
            options = [option for option in options if option != "--cpu"]
            num_gpus = 0
        name = "machines" if num_machines != "1" else "gpus" if num_gpus else "cpu"
        path = LAUNCH_DIR / f"{name}.yaml"
        options = [f"--config_file={path}", *options]
        has_number = False
    else:
        path = Path(config_path)
        if not path.is_file():
            shipped = ", ".join(sorted(file.stem for file in LAUNCH_DIR.glob("*.yaml")))
            raise ValueError(f"--config_file: {path}: no such file; installed ones: {shipped}")
        settings = yaml.safe_load(path.read_text())
        has_number = not isinstance(settings, dict) or "num_processes" in settings
    if has_number or _value(options, "--num_processes") or not num_machines.isdigit():
        return options
    return [f"--num_processes={int(num_machines) * max(num_gpus, 1)}", *options]


def _value(options: list[str], name: str) -> str | None:
    values = [option.partition("=")[2] for option in options if option.startswith(f"{name}=")]
    return values[-1] if values else None


def start_module(module: str, options: list[str], arguments: list[str], say: bool) -> None:
    """Start a module of ours in as many processes as the options ask for; wait for their end.

    Args:
        module: as `python -m` takes it.
        options: the launcher's; empty means one process per GPU, or one without GPUs.
        arguments: the module's own.
        say: print a line that says how many processes were chosen, if the options do not.

    Raises:
        As `accelerate_launch`.
    """
    import torch

    num_gpus = torch.cuda.device_count()
    if say and not options:
        print(_choice(num_gpus), flush=True)
    if num_gpus <= 1 and not options:  # without accelerate, which would limit it to one CPU core
        subprocess.run([sys.executable, "-m", module, *arguments], check=True)
    else:
        accelerate_launch([*completed(options, num_gpus), "--module", module, *arguments])


def _choice(num_gpus: int) -> str:
    more = "choose with --num_processes and --config_file"
    if num_gpus > 1:
        return f"starting {num_gpus} processes, one per GPU; {more}"
    where = "on the one GPU" if num_gpus else "on the CPU, as no GPU was found"
    return f"starting 1 process {where}; {more}"
