"""The command that captions a data set and scores the captions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.in_process import captured_here, train_here
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes

from pipeline.evaluate import main

LAUNCH = ("-m", "launch", "--config_file", "launch/cpu.yaml", "--num_processes")


@pytest.fixture(scope="module")
def checkpoint(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    train_here("--data.train", scenes.train, "--run_dir", run, "--train.steps", 1)
    return run / "checkpoints" / "best"


def evaluate(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the command, with one process in the test's own one."""
    if processes == 1:
        return captured_here(main, *arguments)
    command = [sys.executable, *LAUNCH, processes, "-m", "pipeline.evaluate", *arguments]
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env=ONE_THREAD,
    )


def test_it_writes_the_captions_and_prints_the_scores(
    scenes: Scenes, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folder" / "captions.json"
    inputs = ("--checkpoint", checkpoint, "--shards", scenes.val, "--workers", 0, "--out", out)
    done = evaluate(*inputs)
    assert done.returncode == 0, done.stderr
    assert "Captions of 7 images" in done.stdout
    assert str(out) in done.stdout
    assert len(json.loads(out.read_text())) == 7
    as_json = evaluate(*inputs, "--json")
    scores = json.loads(as_json.stdout)
    assert scores.pop("images") == 7
    assert scores.pop("checkpoints") == [str(checkpoint)]
    assert scores.pop("generation")["method"] == "greedy"
    assert "greedy (max_tokens 8)" in done.stdout
    for name, value in scores.items():
        assert f"{name:<8} {value:.4f}" in done.stdout


def test_captions_are_the_same_for_all_batch_sizes_and_numbers_of_processes(
    scenes: Scenes, checkpoint: Path, tmp_path: Path
) -> None:
    inputs = ("--checkpoint", checkpoint, "--shards", scenes.train, "--workers", 0)
    results = []
    for processes, batch_size in ((1, 1), (1, 32), (2, 7), (3, 32)):
        out = tmp_path / "captions.json"
        done = evaluate(*inputs, "--out", out, "--batch_size", batch_size, "--method", "sample",
                        processes=processes)  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(json.loads(out.read_text()))
    assert len({row["caption"] for row in results[0]}) > 30
    assert all(found == results[0] for found in results[1:])


def test_an_ensemble_of_a_checkpoint_with_itself_is_the_checkpoint(
    scenes: Scenes, checkpoint: Path, tmp_path: Path
) -> None:
    inputs = ("--shards", scenes.val, "--workers", 0, "--method", "beam", "--out")
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert evaluate("--checkpoint", checkpoint, *inputs, one).returncode == 0
    done = evaluate("--checkpoint", checkpoint, "--checkpoint", checkpoint, *inputs, two)
    assert done.returncode == 0, done.stderr
    assert "ensemble of 2 checkpoints, beam (max_tokens 8, beam 5" in done.stdout
    assert json.loads(two.read_text()) == json.loads(one.read_text())


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--out", "FILE/out.json"), "--out: "),
        (("--out", "/proc/out.json"), "--out: /proc/out.json: cannot be written"),
        (("--out", "FOLDER"), "is a folder"),
        (("--out", "s3://bucket/out.json"), "not a URL"),
        (("--out", "x.json", "--batch_size", 0), "--batch_size: 0"),
        (("--out", "x.json", "--max_bad", 2), "--max_bad: 2.0"),
        (("--out", "x.json", "--method", "best"), "--method: invalid choice"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    tmp_path: Path, options: tuple, part: str
) -> None:
    (tmp_path / "file").write_text("")
    named = {"FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path)}
    texts = [
        next((str(text).replace(k, v) for k, v in named.items() if k in str(text)), str(text))
        for text in options
    ]
    done = evaluate("--checkpoint", "nowhere", "--shards", "nowhere", *texts)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert part in done.stderr


HELP = """
import importlib, sys
name = sys.argv[1]
sys.argv = [name, "--help"]
try:
    importlib.import_module(name).main()
except SystemExit as end:
    assert end.code == 0
print(sorted({"torch", "cv2", "accelerate"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("command", ["pipeline.evaluate", "pipeline.order"])
def test_help_is_printed_before_anything_slow_is_imported(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP, command], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "--shards" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
