"""Training as users start it: real processes, real signals, real exit codes."""

import io
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes, build_shards, run_shards
from support.training import epochs, read_sample_log, tiny_settings, train, train_command

from pipeline.checkpoint import commit as checkpoint
from pipeline.checkpoint.best import Scores, load_scores, save_scores
from pipeline.checkpoint.folder import list_checkpoints
from pipeline.config.parser import parse_config
from pipeline.runtime.errors import usage_errors
from pipeline.runtime.preemption import STOPPED
from pipeline.runtime.world import World
from pipeline.training.inputs import prepare

NUM_IMAGES = 63


def newest(run_dir: Path) -> Path:
    return list(list_checkpoints(run_dir / "checkpoints"))[-1]


# (processes, loader workers of each)
SOME = ((1, 0), (2, 1), (4, 3))
EACH = tuple(itertools.product((1, 2, 4), (0, 1, 3)))


@pytest.mark.parametrize("setups", [SOME, pytest.param(EACH, marks=pytest.mark.slow)])
def test_the_samples_of_a_step_do_not_depend_on_processes_or_workers(
    scenes: Scenes, tmp_path: Path, setups: tuple[tuple[int, int], ...]
) -> None:
    logs = {}
    for processes, workers in setups:
        name = f"{processes}-{workers}"
        done = train(
            processes, "--data.train", scenes.train, "--run_dir", tmp_path / name,
            "--monitor.sample_log", tmp_path / f"log-{name}", "--data.workers", workers,
            "--train.epochs", 2, "--train.accumulation_steps", 1 + workers % 2,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"{processes} process" in done.stdout.splitlines()[0]
        logs[name] = read_sample_log(tmp_path / f"log-{name}")
    first = logs["1-0"]
    for name, log in logs.items():
        assert log == first, name
    assert list(first) == list(range(13))  # 2 epochs of 63 images, 10 a step
    consumed = [image_id for ids in first.values() for image_id in ids]
    for epoch in (0, 1):
        one_epoch = consumed[epoch * NUM_IMAGES : (epoch + 1) * NUM_IMAGES]
        assert len(set(one_epoch)) == NUM_IMAGES
    assert consumed[:NUM_IMAGES] != consumed[NUM_IMAGES:]


def stop_after(command: list[str], log: Path, step: int) -> int:
    """Start, ask to stop once `log` shows the step, and give the exit code."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > step):
        assert process.poll() is None, "ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=120)


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_stopped_run_ends_with_the_weights_of_an_uninterrupted_one(
    scenes: Scenes, tmp_path: Path, processes: int
) -> None:
    """Dropout on, BatchNorm training, and stopped twice in one epoch."""
    settings = ("--data.train", scenes.train, "--train.epochs", 10, "--optim.lr", 3e-3)
    whole = train(processes, *settings, "--run_dir", tmp_path / "whole",
                  "--monitor.sample_log", tmp_path / "whole-log")  # fmt: skip
    assert whole.returncode == 0, whole.stderr

    prefix = tmp_path / "parts-log"
    command = train_command(
        processes, *settings, "--run_dir", tmp_path / "parts", "--monitor.sample_log", prefix
    )
    log = Path(f"{prefix}.rank0.jsonl")
    stopped_at = [0]
    for _ in range(2):
        assert stop_after(command, log, stopped_at[-1] + 2) == STOPPED
        stopped_at.append(checkpoint.load_state(newest(tmp_path / "parts"))[0].step)
    assert stopped_at == sorted(set(stopped_at))
    assert stopped_at[-1] < 63, "stopped too late to show anything"
    done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"from step {stopped_at[-1]}" in done.stdout

    assert read_sample_log(prefix) == read_sample_log(tmp_path / "whole-log")
    lines = log.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(63))  # nothing done twice
    weights, expected = (
        load_file(newest(tmp_path / name) / "model.safetensors") for name in ("parts", "whole")
    )
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert set(weights) == set(expected)


def test_a_run_that_ended_with_an_incomplete_batch_is_not_extended(
    scenes: Scenes, tmp_path: Path
) -> None:
    settings = ("--data.train", scenes.train, "--run_dir", tmp_path / "run")
    assert train(1, *settings, "--train.epochs", 1).returncode == 0
    assert train(1, *settings, "--train.epochs", 1).returncode == 0  # finished: nothing to do
    refused((*settings, "--train.epochs", 2), "incomplete batch", "train.epochs")


def test_a_run_evaluates_and_keeps_the_best(scenes: Scenes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (
        "--data.train", scenes.train, "--data.val", scenes.val, "--run_dir", run,
        "--train.steps", 6, "--train.eval_every_epochs", epochs(3), "--train.keep", 1,
    )  # fmt: skip
    done = train(2, *settings)
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu, gloo" in done.stdout
    assert done.stdout.count("CIDEr") == 2
    assert list((run / "tensorboard").glob("events*"))
    best = run / "checkpoints" / "best"
    checkpoint.check_checkpoint(best)
    scores = load_scores(run / "checkpoints", 6)
    assert set(scores.by_step) == {3, 6}

    # As a kill after the last commit would leave it: the missing evaluation is made up for.
    earlier = Scores(scores.data_digest, {3: scores.by_step[3]})
    save_scores(run / "checkpoints", earlier)
    best.unlink()
    done = train(1, *settings)
    assert done.returncode == 0, done.stderr
    assert set(load_scores(run / "checkpoints", 6).by_step) == {3, 6}
    checkpoint.check_checkpoint(best)

    without = [*settings[:2], *settings[4:6], "--train.steps", 7]  # no data.val for a while
    done = train(1, *without)
    assert done.returncode == 0
    assert "changed since the checkpoint: train.steps: 6, now 7" in done.stdout
    refused((*settings, "--data.val", scenes.train, "--train.steps", 7), "data.val",
             "scores.json")  # fmt: skip


def test_a_damaged_newest_commit_is_passed_over_when_asked(scenes: Scenes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (
        "--data.train", scenes.train, "--run_dir", run, "--train.steps", 4, "--train.keep", 9,
        "--train.checkpoint_minutes", 1e-6,
    )  # fmt: skip
    done = train(2, *settings)
    assert done.returncode == 0, done.stderr
    found = list(list_checkpoints(run / "checkpoints"))
    assert [checkpoint.step_of(path) for path in found] == [1, 2, 3, 4]  # by the clock
    mapped = load_file(found[3] / "model.safetensors")
    expected = {name: weight.clone() for name, weight in mapped.items()}  # the file is cut now

    (found[3] / "model.safetensors").write_bytes(b"")
    refused(settings, "step-00000004", "model.safetensors", "step-00000003",
             "train.resume previous")  # fmt: skip
    (found[2] / "files.json").unlink()
    done = train(2, *settings, "--train.resume", "previous")
    assert done.returncode == 0, done.stderr
    assert "from step 2" in done.stdout
    for name, fault in (("step-00000004", "model.safetensors"), ("step-00000003", "files.json")):
        (line,) = [line for line in done.stdout.splitlines() if f"damaged-{name}" in line]
        assert fault in line
        assert (run / "checkpoints" / f"damaged-{name}").is_dir()
    found = list(list_checkpoints(run / "checkpoints"))
    assert [checkpoint.step_of(path) for path in found] == [1, 2, 3, 4]
    assert (run / "checkpoints" / "best").resolve() == found[3]
    for path in found:
        checkpoint.check_checkpoint(path)
    weights = load_file(found[3] / "model.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    done = train(1, *settings, "--train.resume", "previous")  # nothing damaged: as auto
    assert done.returncode == 0, done.stderr
    assert "all done already" in done.stdout

    for path in found:
        (path / "state.json").unlink()
    refused((*settings, "--train.resume", "previous"), "step-00000001", "run_dir")


# -------------------------------------------------------------------------- what a user gets wrong


def one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0]


def refused(settings: Sequence[object], *parts: str) -> None:
    """The run does not start, for a reason with these parts. In this process, to save time."""
    stderr = io.StringIO()
    with pytest.raises(SystemExit) as ended, redirect_stderr(stderr), usage_errors("train"):
        prepare(parse_config(tiny_settings(*settings)), World())
    code = ended.value.code
    one_line(subprocess.CompletedProcess("", int(code or 0), stderr=stderr.getvalue()), *parts)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_unknown_setting_is_one_line(scenes: Scenes, tmp_path: Path, processes: int) -> None:
    done = train(processes, "--data.train", scenes.train, "--optim.learning_rate", 1)
    one_line(done, "train:", "optim.learning_rate")


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    settings = ("--data.train", tmp_path / "nowhere", "--run_dir", tmp_path / "run")
    refused(settings, "nowhere", "no such shard folder")
    one_line(train(2, *settings), "nowhere", "no such shard folder")


def test_a_warm_up_too_long_for_the_run_is_one_line(scenes: Scenes, tmp_path: Path) -> None:
    settings = ("--data.train", scenes.train, "--run_dir", tmp_path / "run", "--train.steps", 6)
    refused((*settings, "--optim.warmup_epochs", 0.5), "optim.warmup_epochs", "3 steps",
             "more than a third", "0.317 or less")  # fmt: skip
    assert not (tmp_path / "run").exists()
    assert train(1, *settings, "--optim.warmup_epochs", 0.317).returncode == 0


def test_an_empty_split_is_one_line(scenes: Scenes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes.data, data)
    path = data / "annotations" / "captions_val2017.json"
    annotations = json.loads(path.read_text())
    for image in annotations["images"]:
        image["file_name"] = "missing.jpg"
    path.write_text(json.dumps(annotations))
    empty = tmp_path / "empty"
    build_shards(data, "val", scenes.tokenizer, empty, "--max_rejected", 1)
    settings = ("--data.train", scenes.train, "--data.val", empty, "--run_dir", tmp_path / "run")
    refused(settings, str(empty), "empty")
    refused(("--data.train", empty, "--run_dir", tmp_path / "run"), str(empty), "empty")


def test_a_run_folder_that_cannot_be_one_is_one_line(scenes: Scenes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = ("--data.train", scenes.train, "--run_dir", tmp_path / "file")
    refused(folder, "run_dir", "file", "File exists")
    damaged = tmp_path / "run" / "checkpoints"
    done = train(1, "--data.train", scenes.train, "--run_dir", tmp_path / "run", "--train.steps", 1)
    assert done.returncode == 0, done.stderr
    (damaged / "scores.json").write_text("{")
    settings = ("--data.train", scenes.train, "--run_dir", tmp_path / "run", "--train.steps", 1)
    refused(settings, "scores.json", "delete the file to continue")


def test_a_damaged_index_is_one_line(scenes: Scenes, tmp_path: Path) -> None:
    """Its keys have no checksum of their own; a wrong one would name another image."""
    folder = tmp_path / "train"
    shutil.copytree(scenes.train, folder)
    data = bytearray((folder / "index.npz").read_bytes())
    data[data.index(b"000000000")] ^= 1
    (folder / "index.npz").write_bytes(data)
    refused(("--data.train", folder, "--run_dir", tmp_path / "run"), "index.npz", "damaged")


def test_a_run_folder_behind_a_url_is_one_line(scenes: Scenes) -> None:
    refused(("--data.train", scenes.train, "--run_dir", "s3://bucket/run"), "run_dir")


def test_another_tokenizer_or_another_run_is_one_line(scenes: Scenes, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    annotations = scenes.data / "annotations" / "captions_val2017.json"
    assert run_shards("tokenizer", "--annotations", annotations, "--out", other,
                      "--min-count", 1).returncode == 0  # fmt: skip
    foreign = tmp_path / "foreign"
    build_shards(scenes.data, "val", other, foreign, "--resize-short", 48)
    run = tmp_path / "run"
    settings = ("--data.train", scenes.train, "--run_dir", run, "--train.steps", 2)
    refused((*settings, "--data.val", foreign), str(foreign), "tokenizer")
    assert train(1, *settings).returncode == 0
    refused(("--data.train", foreign, "--run_dir", run), "tokenizer", str(run))
    refused((*settings, "--seed", 1), "seed", str(run))
    refused((*settings, "--model.dim", 8), "model.dim", "(16, now 8)", str(run))
    refused((*settings, "--train.steps", 1), "train.steps", str(run))
    refused((*settings, "--train.resume", "never"), "run_dir", str(run))

    command = [sys.executable, "-m", "pipeline.evaluate", "--checkpoint", run / "checkpoints/best",
               "--shards", foreign, "--out", tmp_path / "r.json"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    one_line(done, "tokenizer", str(foreign))

    weights = newest(run) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused(settings, "damaged checkpoint", "model.safetensors")
