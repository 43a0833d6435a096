"""The caption command: what it reads, what it writes, and how it goes on after a kill."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from support.checkpoints import draw_weights
from support.in_process import captured_here, train_here
from support.repository import ONE_THREAD, ROOT
from support.shards import Scenes

from pipeline.caption import main

LAUNCH = ["-m", "launch", "--config_file", "launch/cpu.yaml"]


@pytest.fixture(scope="module")
def checkpoint(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose captions differ from image to image.

    Training fits the statistics of the normalisation layers; drawn weights then tell images apart
    better than so short a training does.
    """
    run = tmp_path_factory.mktemp("caption") / "run"
    train_here("--data.train", scenes.train, "--run_dir", run, "--train.epochs", 20)
    newest = max((run / "checkpoints").glob("step-*"))
    draw_weights(newest)
    return newest


@pytest.fixture(scope="module")
def expected(checkpoint: Path, photos_source: Path) -> dict[str, str]:
    """File name -> caption, of all drawn images by one process."""
    done = caption(checkpoint, photos_source, "--json")
    assert done.returncode == 0, done.stderr
    rows = list(map(json.loads, done.stdout.splitlines()))
    found = {Path(row["image"]).name: row["caption"] for row in rows}
    assert len(found) == 70
    assert len(set(found.values())) > 10, "too much alike to show anything"
    return found


@pytest.fixture(scope="module")
def photos_source(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 70 drawn images in one folder."""
    folder = tmp_path_factory.mktemp("drawn")
    for path in scenes.data.glob("*2017/*.jpg"):
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture
def photos(photos_source: Path, tmp_path: Path) -> Path:
    """A copy of them to write to."""
    return Path(shutil.copytree(photos_source, tmp_path / "photos"))


def command(checkpoint: Path, *arguments: object, processes: int = 1) -> list[str]:
    launched = [*LAUNCH, "--num_processes", processes] if processes > 1 else []
    start = [sys.executable, *launched, "-m", "pipeline.caption", "--checkpoint", checkpoint]
    return [*map(str, start), *map(str, arguments)]


def caption(
    checkpoint: Path, *arguments: object, processes: int = 1, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command, with one process in the test's own one."""
    if processes > 1:
        return subprocess.run(
            command(checkpoint, *arguments, processes=processes),
            input=stdin, capture_output=True, text=True, cwd=ROOT, env=ONE_THREAD, check=False,
        )  # fmt: skip
    return captured_here(main, "--checkpoint", checkpoint, *arguments, stdin=stdin)


def one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_help_answers_without_torch() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['caption', '--help']\n"
        "try:\n    runpy.run_module('pipeline.caption', run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "False False"
    assert "--checkpoint" in done.stdout
    assert time.monotonic() - start < 5  # about 0.2 s; several on a busy machine


def test_files_folders_patterns_and_lists_are_captioned(
    checkpoint: Path, expected: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in photos.iterdir())
    nested = photos / "2026" / "may"
    nested.mkdir(parents=True)
    for name in names[10:20]:
        (photos / name).rename(nested / name)
    (photos / names[0]).rename(photos / "noname")  # a file that is named is taken as it is
    (photos / names[1]).rename(photos / ".hidden.jpg")
    (photos / "notes.txt").write_text("no image")
    listed = tmp_path / "list"
    listed.write_text(f"{photos / names[30]}\n\n{photos / names[31]}\n")

    done = caption(checkpoint, photos / "noname", f"{photos}/**/may/*", photos / "2026",
                   "--from", listed)  # fmt: skip
    assert done.returncode == 0, done.stderr
    inside = [(nested / name, name) for name in names[10:20]]
    wanted = [(photos / "noname", names[0]), *inside, *inside,
              *((photos / name, name) for name in names[30:32])]  # fmt: skip
    assert done.stdout.splitlines() == [f"{path}: {expected[name]}" for path, name in wanted]

    done = caption(checkpoint, photos, "--json", "--from", "-", stdin=f"{photos / 'noname'}\n")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line)["image"] for line in done.stdout.splitlines()]
    flat = [photos / name for name in [*names[2:10], *names[20:]]]
    nested_too = [path for path, _ in inside]
    assert rows == list(map(str, [*flat, *nested_too, photos / "noname"]))


def test_an_unreadable_image_is_named_and_the_others_are_captioned(
    checkpoint: Path, expected: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in photos.iterdir())
    (photos / "broken.jpg").write_bytes((photos / names[0]).read_bytes()[:300])
    (photos / "empty.png").write_bytes(b"")
    (photos / "folder.webp").mkdir()
    missing = tmp_path / "list"
    missing.write_text("gone.jpg\n")
    out, sheet = tmp_path / "captions.csv", tmp_path / "sheet.png"
    for processes in (1, 2):
        done = caption(checkpoint, photos, "--from", missing, "--out", out, "--sheet", sheet,
                       processes=processes)  # fmt: skip
        assert done.returncode == 1, done.stderr
        for name in ("broken.jpg", "empty.png", "folder.webp", "gone.jpg"):
            assert done.stderr.count(f"{name}: ") == 1
        assert "4 images could not be read" in done.stderr
        with open(out, newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows == [{"image": str(photos / n), "caption": expected[n]} for n in names]
        assert Image.open(sheet).width > 800
        out.unlink()


def test_coco_results(
    checkpoint: Path, expected: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    (photos / "000000000001.jpg").rename(photos / "first one.jpg")
    out = tmp_path / "new" / "captions.json"
    done = caption(checkpoint, photos, "--out", out, processes=2)
    assert done.returncode == 0, done.stderr
    names = sorted(expected)[1:]
    wanted = [{"image_id": int(name[:-4]), "caption": expected[name]} for name in names]
    first = {"image_id": str(photos / "first one.jpg"), "caption": expected["000000000001.jpg"]}
    assert json.loads(out.read_text()) == [*wanted, first]
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "captions.json", "captions.json.run.json"
    ]  # fmt: skip


def test_text_files_lie_beside_the_images_and_are_never_overwritten(
    checkpoint: Path, expected: dict[str, str], photos: Path
) -> None:
    names = sorted(expected)
    (photos / names[3]).with_suffix(".txt").write_text("by hand\n")
    done = caption(checkpoint, photos, "--txt", processes=2)
    assert done.returncode == 0, done.stderr
    texts = [(photos / name).with_suffix(".txt").read_text() for name in names]
    assert texts[3] == "by hand\n"
    assert [text for text in texts if text != "by hand\n"] == [
        expected[name] + "\n" for number, name in enumerate(names) if number != 3
    ]
    assert len(list(photos.iterdir())) == 140
    shutil.copyfile(photos / names[0], (photos / names[0]).with_suffix(".png"))
    one_line(caption(checkpoint, photos, "--txt"), names[0], "same text file")


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = sum(len(path.read_bytes().splitlines()) - 1 for path in folder.glob("*.part"))
        if lines >= count:
            return
        assert process.poll() is None, "ended before it was killed"
        time.sleep(0.005)
    pytest.fail("no captions came")


@pytest.fixture
def many(photos_source: Path, tmp_path: Path) -> Path:
    """2,100 names of the drawn images."""
    folder = tmp_path / "many"
    for copy in range(30):
        (folder / f"{copy:02d}").mkdir(parents=True)
        for path in photos_source.iterdir():
            os.link(path, folder / f"{copy:02d}" / path.name)
    return folder


def test_a_killed_run_goes_on_where_it_was(checkpoint: Path, many: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole" / "c.jsonl", tmp_path / "killed" / "c.jsonl"
    done = caption(checkpoint, many, "--out", whole, processes=2)
    assert done.returncode == 0, done.stderr
    for number, processes in enumerate((1, 2)):
        process = subprocess.Popen(
            command(checkpoint, many, "--out", killed, processes=processes), cwd=ROOT,
            env=ONE_THREAD, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for_lines(killed.parent, 200 + 600 * number, process)
        os.killpg(process.pid, 9)
        process.wait()
    parts = sorted(killed.parent.glob("*.part"))
    assert len(parts) == 2
    assert not killed.exists()
    with open(parts[0], "rb+") as file:  # as a kill amid a write would leave it
        file.truncate(file.seek(0, 2) - 10)
    before = sum(len(path.read_bytes().splitlines()) - 1 for path in parts)
    done = subprocess.run(command(checkpoint, many, "--out", killed), capture_output=True,
                          text=True, cwd=ROOT, env=ONE_THREAD, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert before > 700
    assert killed.read_bytes() == whole.read_bytes()
    assert not list(killed.parent.glob("*.part"))

    changed = killed.stat().st_mtime_ns
    done = caption(checkpoint, many, "--out", killed)  # finished: nothing is done again
    assert (done.returncode, killed.stat().st_mtime_ns) == (0, changed)
    assert "finished earlier" in done.stderr


def test_captions_of_two_checkpoints_or_image_sets_do_not_mix(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.jsonl"
    (tmp_path / "c.jsonl.rank0.part").write_text('{"capstream_captions": 1, "batch": 7}\n')
    one_line(caption(checkpoint, photos, "--out", out), "c.jsonl.rank0.part", "another checkpoint")
    (tmp_path / "c.jsonl.rank0.part").unlink()
    out.write_text("mine\n")
    one_line(caption(checkpoint, photos, "--out", out), "c.jsonl", "exists already")
    assert out.read_text() == "mine\n"


def test_unusable_input_ends_with_one_line(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one_line(caption(checkpoint), "no images")
    one_line(caption(checkpoint, photos / "gone.jpg"), "gone.jpg", "no such file")
    one_line(caption(checkpoint, f"{photos}/*.gif"), "*.gif", "no image")
    one_line(caption(checkpoint, tmp_path / "empty"), "empty", "no image in this folder")
    one_line(caption(checkpoint, photos, "--out", "c.xml"), "--out", ".json, .csv, .jsonl")
    one_line(caption(checkpoint, photos, "--out", "c.csv", "--txt"), "not allowed with")
    one_line(caption(tmp_path, photos), "not a checkpoint")
    one_line(caption(checkpoint, photos, "--top_k", 3), "--top_k: is for --method sample")
    alone = subprocess.run(command(checkpoint, photos / "gone.jpg"), capture_output=True, text=True,
                           cwd=ROOT, env=ONE_THREAD, check=False)  # fmt: skip
    one_line(alone, "gone.jpg", "no such file")


def test_several_captions_of_an_image(
    checkpoint: Path, expected: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    image, out = photos / min(expected), tmp_path / "captions.jsonl"
    beam = ("--method", "beam", "--beam", 3, "--num_captions", 3)
    done = caption(checkpoint, image, "--out", out, *beam)
    assert done.returncode == 0, done.stderr
    row = json.loads(out.read_text())
    captions = [entry["caption"] for entry in row["captions"]]
    scores = [entry["score"] for entry in row["captions"]]
    assert len(set(captions)) == 3
    assert row["caption"] == captions[0]
    assert scores == sorted(scores, reverse=True)
    done = caption(checkpoint, image, *beam)
    assert done.stdout.splitlines() == [f"{image}: {text}" for text in captions]
    done = caption(checkpoint, image, "--json", "--method", "beam", "--beam", 3)
    assert json.loads(done.stdout) == {"image": str(image), "caption": captions[0]}
    one_line(caption(checkpoint, image, "--out", out), "captions.jsonl", "exists already")
