"""The installed wheel, from an empty folder, without the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support.repository import ROOT
from support.training import TINY

from capstream.cli import COMMANDS
from launch.processes import launcher_options

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def capstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console command, in an environment that shares its dependencies with this one."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in ("capstream", "configs", "launch", "pipeline", "shards"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for file in ROOT.glob("*"):
        if file.is_file():
            shutil.copy(file, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quietly = ["--no-deps", "--quiet", "--no-index"]
    built = [*pip, "wheel", source, *quietly, "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run(built, check=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", *quietly, wheel], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    assert not (packages / "train.py").exists()
    assert not (packages / "configs").exists()
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(source)
    return environment / "bin" / "capstream"


def run(
    capstream: Path, folder: Path, *arguments: object, exit_code: int = 0
) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    done = subprocess.run(
        [capstream, *map(str, arguments)], capture_output=True, text=True, cwd=folder, check=False,
        env={**environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, timeout=300,
    )  # fmt: skip
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done


def test_the_whole_way(capstream: Path, tmp_path: Path) -> None:
    # Folders of the packages' names hide no package: a user may well have a folder `shards`.
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise ImportError('not this one')\n")
    run(capstream, tmp_path, "sample", "--out", "data", "--images", 70)
    captions = "data/annotations/captions_train2017.json"
    tokenizer = "tokenizer.json"
    run(capstream, tmp_path, "tokenizer", "--annotations", captions, "--out", tokenizer)
    for split in ("train", "val"):
        run(
            capstream, tmp_path, "build", "--images", f"data/{split}2017", "--annotations",
            f"data/annotations/captions_{split}2017.json", "--tokenizer", tokenizer,
            "--out", f"shards/{split}", "--name", split, "--resize-short", 48, "--workers", 2,
        )  # fmt: skip
    settings = (*TINY, "--data.train", "shards/train", "--data.val", "shards/val")
    settings = (*settings, "--train.epochs", 1)
    one = run(capstream, tmp_path, "train", "--config", "demo", *settings, "--run_dir", "runs/one")
    assert one.stdout.startswith("starting 1 process on the CPU")
    assert "1 process on cpu" in one.stdout
    two = run(
        capstream, tmp_path, "train", *settings, "--num_processes", 2, "--run_dir", "runs/two"
    )
    assert "2 processes on cpu" in two.stdout
    checkpoint = ("--checkpoint", "runs/two/checkpoints/best")
    scored = {}
    for number, options in enumerate([(), ("--config_file", "cpu")]):
        done = run(
            capstream, tmp_path, "evaluate", *options, *checkpoint, "--shards", "shards/val",
            "--out", f"results{number}.json", "--json",
        )  # fmt: skip
        scored[options] = json.loads(done.stdout)
    assert len({json.dumps(scores) for scores in scored.values()}) == 1
    image = next((tmp_path / "data" / "val2017").glob("*.jpg"))
    assert run(capstream, tmp_path, "caption", *checkpoint, image).stdout.startswith(str(image))
    run(capstream, tmp_path, "words", *checkpoint, "--out", "words")
    assert "</html>" in (tmp_path / "words" / "words.html").read_text()


def test_a_wrong_setting_is_one_line(capstream: Path, tmp_path: Path) -> None:
    for options in ((), ("--num_processes", 2)):
        done = run(capstream, tmp_path, "train", *options, "--optim.lrr", 1, exit_code=2)
        (line,) = done.stderr.splitlines()
        assert "--optim.lrr" in line
    for wrong in (("--num_processes", "many"), ("--config_file", "nix")):
        (line,) = run(capstream, tmp_path, "train", *wrong, exit_code=2).stderr.splitlines()
        assert wrong[0] in line


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_no_torch(name: str) -> None:
    """torch and accelerate take seconds to import; --help answers in less than one."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "capstream", name, "--help"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "usage:" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "capstream.cli" in imported
    assert not {"torch", "accelerate"} & imported


@pytest.mark.parametrize(
    "name", [name for name, command in COMMANDS.items() if command.launcher != "never"]
)
def test_no_option_is_also_one_of_the_launcher(name: str) -> None:
    """The launcher would take it away from the command."""
    listed = subprocess.run(
        [sys.executable, "-m", COMMANDS[name].module, "--help"], capture_output=True, text=True,
        cwd=ROOT, check=True,
    ).stdout  # fmt: skip
    own = set(re.findall(r"--[\w.-]+", listed))
    assert len(own) > 3
    assert not own & set(launcher_options())


def test_every_command_of_shards_is_a_command(capstream: Path, tmp_path: Path) -> None:
    own = {name: command.help for name, command in COMMANDS.items() if command.module == "shards"}
    listed = subprocess.run(
        [sys.executable, "-m", "shards", "--help"], capture_output=True, text=True, cwd=ROOT,
        check=True, env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip
    assert dict(re.findall(r"^    ([a-z]+)\s+(.+)$", listed, re.MULTILINE)) == own
    assert run(capstream, tmp_path, "build", "--help").stdout.startswith("usage: capstream build")


def test_the_overview_lists_the_commands(capstream: Path, tmp_path: Path) -> None:
    overview = run(capstream, tmp_path, "--help").stdout
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", overview, re.MULTILINE)


def test_an_unknown_command_is_one_line(capstream: Path, tmp_path: Path) -> None:
    (line,) = run(capstream, tmp_path, "pack", exit_code=2).stderr.splitlines()
    assert "pack" in line


def test_help_whose_reader_ends_first_ends_without_a_trace(capstream: Path, tmp_path: Path) -> None:
    command = [capstream, "--help"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
