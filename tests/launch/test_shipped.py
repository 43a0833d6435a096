"""Installed recipes and configuration files, by their bare names."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.repository import ROOT

from capstream.cli import RECIPE_DIR
from capstream.shipped import find_shipped


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "configs/demo.yaml"])
def test_a_recipe_is_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(RECIPE_DIR / "demo.yaml")
    before, after = ["--run_dir", "demo"], ["--seed", "1"]
    assert find_shipped([*before, "--config", name, *after], "--config", RECIPE_DIR) == [
        *before, "--config", path, *after,
    ]  # fmt: skip
    assert find_shipped([f"--config={name}"], "--config", RECIPE_DIR) == [f"--config={path}"]


@pytest.mark.parametrize("name", ["other.yaml", "elsewhere/demo.yaml", "/demo.yaml", ""])
def test_other_names_stay(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", name, "--config"]
    assert find_shipped(arguments, "--config", RECIPE_DIR) == arguments


def test_a_file_of_the_user_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("seed: 1\n")
    arguments = ["--config", "demo.yaml"]
    assert find_shipped(arguments, "--config", RECIPE_DIR) == arguments
    (tmp_path / "demo").mkdir()  # a folder of the recipe's name is no recipe
    assert find_shipped(["--config=demo"], "--config", RECIPE_DIR) != ["--config=demo"]


def run_capstream(*arguments: str) -> str:
    command = [sys.executable, "-m", "capstream", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


def test_settings_are_printed_without_starting_processes() -> None:
    printed = yaml.safe_load(run_capstream("train", "--config", "demo", "--print-config"))
    shipped = yaml.safe_load((RECIPE_DIR / "demo.yaml").read_text())
    assert printed["model"]["dim"] == shipped["model"]["dim"]


@pytest.mark.parametrize("name", ["train", "evaluate", "caption", "order"])
def test_help_names_the_command_that_was_given(name: str) -> None:
    assert run_capstream(name, "--help").startswith(f"usage: capstream {name} [-h]")
