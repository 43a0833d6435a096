"""A small drawn data set in shards, and the commands that pack it."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support.repository import ROOT


def run_shards(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m shards ...`, as a user runs it."""
    command = [sys.executable, "-m", "shards", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def build_shards(data: Path, split: str, tokenizer: Path, out: Path, *options: object) -> dict:
    """Build one split of a COCO-like folder, and give the summary."""
    done = run_shards(
        "build", "--images", data / f"{split}2017",
        "--annotations", data / "annotations" / f"captions_{split}2017.json",
        "--tokenizer", tokenizer, "--out", out, "--name", split, "--json", *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Scenes:
    """A drawn data set: COCO's layout, its tokenizer, its shards."""

    data: Path
    tokenizer: Path
    train: Path
    val: Path


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file, hidden ones too, but of the report, which holds a speed."""
    files = [path for path in sorted(folder.iterdir()) if path.name != "report.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def coco_folder(scenes: Scenes, folder: Path) -> tuple[Path, dict]:
    """A copy of the drawn data to spoil, and its parsed training annotations."""
    shutil.copytree(scenes.data, folder)
    return folder, json.loads((folder / "annotations" / "captions_train2017.json").read_text())


def save_annotations(folder: Path, annotations: object) -> None:
    (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(annotations))


def build_command(folder: Path, scenes: Scenes, out: Path, *options: object) -> list[object]:
    """`build` of the training split of a folder, with options that replace those given here."""
    usual = {
        "--images": folder / "train2017",
        "--annotations": folder / "annotations" / "captions_train2017.json",
        "--tokenizer": scenes.tokenizer, "--out": out, "--samples_per_shard": 10, "--workers": 1,
    }  # fmt: skip
    given = {str(option).replace("-", "_") for option in options}
    kept = [pair for pair in usual.items() if pair[0].replace("-", "_") not in given]
    return ["build", *(part for pair in kept for part in pair), *options]
