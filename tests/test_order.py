"""The command that prints which images make up each step."""

import json
import subprocess
import sys

import pytest
from support.repository import ROOT
from support.shards import Scenes

from shards.format.index import read_index
from shards.format.names import image_id_of


def print_order(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.order", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_it_prints_the_ids_of_any_step(scenes: Scenes) -> None:
    options = ("--shards", scenes.train, "--global_batch_size", 10, "--seed", 4, "--json")
    done = print_order(*options, "--steps", 7)
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    ids = [image_id for step in steps for image_id in step["ids"]]
    names = {image_id_of(read_index(scenes.train).key(n)) for n in range(63)}
    assert [step["step"] for step in steps] == list(range(7))
    assert set(ids[:63]) == names
    later = print_order(*options, "--steps", 1, "--first-step", 5)
    assert json.loads(later.stdout) == steps[5]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--shards", "nowhere"), "nowhere"),
        (("--shards", "x", "--steps", 0), "--steps: 0"),
        (("--shards", "x", "--streams", 5), "--streams: must divide --global_batch_size"),
    ],
)
def test_a_mistake_is_one_line(options: tuple, part: str) -> None:
    done = print_order(*options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("python -m pipeline.order: ")
    assert part in done.stderr
