"""The launcher's options: told from the program's own, and completed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.processes import LAUNCH_DIR, completed, launcher_options, split_options

TAKES_VALUE = {"--num_processes": True, "--max_restarts": True, "--multi_gpu": False}


def test_options_of_both_may_stand_in_any_order() -> None:
    arguments = [
        "--data.train", "shards", "--num-processes", "2", "--multi_gpu", "--optim.lr=1e-3",
        "--max_restarts=3", "photo.jpg",
    ]  # fmt: skip
    options, rest = split_options(arguments, TAKES_VALUE)
    assert options == ["--num_processes=2", "--multi_gpu", "--max_restarts=3"]
    assert rest == ["--data.train", "shards", "--optim.lr=1e-3", "photo.jpg"]


@given(
    st.lists(st.sampled_from(["--run_dir", "runs/a", "--json", "-1", "--a-b=c", "num_processes"]))
)
def test_arguments_of_the_program_stay_as_they_are(arguments: list[str]) -> None:
    assert split_options(arguments, TAKES_VALUE) == ([], arguments)


def test_an_option_without_its_value_is_left_for_the_launcher_to_refuse() -> None:
    assert split_options(["--num_processes"], TAKES_VALUE) == (["--num_processes"], [])


@pytest.mark.parametrize(
    ("options", "num_gpus", "file", "num_processes"),
    [
        ([], 4, "gpus", "4"),
        (["--max_restarts=3"], 0, "cpu", "1"),
        (["--num_processes=2"], 0, "cpu", "2"),
        (["--num_processes=2"], 8, "gpus", "2"),
        (["--cpu", "--num_processes=2"], 8, "cpu", "2"),
        (["--num_machines=2", "--machine_rank=1"], 8, "machines", "16"),
        ([f"--config_file={LAUNCH_DIR / 'gpus.yaml'}"], 8, "gpus", "8"),
    ],
)
def test_the_file_and_the_number_of_processes_are_filled_in(
    options: list[str], num_gpus: int, file: str, num_processes: str
) -> None:
    chosen = dict(option.partition("=")[::2] for option in completed(options, num_gpus))
    assert Path(chosen["--config_file"]) == LAUNCH_DIR / f"{file}.yaml"
    assert chosen["--num_processes"] == num_processes
    assert "--cpu" not in chosen


def test_the_number_in_a_configuration_file_stands() -> None:
    options = [f"--config_file={LAUNCH_DIR / 'cpu.yaml'}"]
    assert completed(options, 8) == options


def test_a_missing_configuration_file_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"--config_file: nix: no such file.*cpu, gpus, machines"):
        completed(["--config_file=nix"], 0)


@pytest.mark.parametrize(
    "options",
    [
        ["--cpu", "--num_machines=2"],
        ["--cpu", "--num_processes=2", f"--config_file={LAUNCH_DIR / 'cpu.yaml'}"],
        ["--mixed_precision=bf16"],
        ["--mixed_precision=no"],
    ],
)
def test_options_that_would_have_no_effect_are_refused(options: list[str]) -> None:
    with pytest.raises(ValueError, match=options[0].partition("=")[0]):
        completed(options, num_gpus=2)


def test_the_options_come_from_accelerate() -> None:
    options = launcher_options()
    assert options["--num_processes"]
    assert options["--machine_rank"]
    assert not options["--multi_gpu"]
    assert not {"--module", "--no_python", "--help"} & set(options)
