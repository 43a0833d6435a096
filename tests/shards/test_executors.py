"""Where jobs run makes no difference to what comes out, and one bad image harms no other."""

import faulthandler
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from support.repository import ROOT
from support.shards import Scenes, build_command, coco_folder, digests, run_shards, save_annotations

from shards.guard import bounded_in_own_process, limit_memory
from shards.images import RejectedImageError

OPTIONS = ("--resize_short", 48)


def test_an_array_finished_in_any_order_gives_the_same_bytes(
    scenes: Scenes, tmp_path: Path
) -> None:
    members = list(range(8))  # more than the 7 shards: one has nothing to do
    random.Random(0).shuffle(members)
    command = build_command(scenes.data, scenes, tmp_path, *OPTIONS)
    for member in members:
        assert not (tmp_path / "manifest.json").exists()
        done = run_shards(*command, "--job_index", member, "--job_count", 8)
        assert done.returncode == 0, done.stderr
    done = run_shards("finalize", tmp_path, "--tokenizer", scenes.tokenizer, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images_packed"] == 63
    assert digests(tmp_path) == digests(scenes.train)


def test_finalize_names_the_shards_that_are_not_done(scenes: Scenes, tmp_path: Path) -> None:
    command = build_command(scenes.data, scenes, tmp_path, *OPTIONS)
    assert run_shards(*command, "--job_index", 0, "--job_count", 4).returncode == 0
    done = run_shards("finalize", tmp_path, "--tokenizer", scenes.tokenizer)
    assert done.returncode == 2
    assert "5 of 7 shards are not packed (train-000001.tar, " in done.stderr


def test_ray_gives_the_same_bytes(scenes: Scenes, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    command = build_command(scenes.data, scenes, tmp_path, *OPTIONS)
    done = run_shards(*command, "--executor", "ray")
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path) == digests(scenes.train)


def test_two_builds_of_one_folder_do_no_harm(scenes: Scenes, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "shards",
        *map(str, build_command(scenes.data, scenes, tmp_path, *OPTIONS)),
    ]  # fmt: skip
    builds = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for build in builds:
        _, said = build.communicate(timeout=60)
        assert build.returncode == 0, said
    assert digests(tmp_path) == digests(scenes.train)


def test_images_that_have_come_back_are_packed(scenes: Scenes, tmp_path: Path) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    names = [image["file_name"] for image in annotations["images"][:2]]
    out = tmp_path / "out"
    (folder / "train2017" / names[0]).rename(tmp_path / "missing")
    (folder / "train2017" / names[1]).write_bytes(b"")
    command = build_command(folder, scenes, out, *OPTIONS, "--max_rejected", 1, "--json")
    first = json.loads(run_shards(*command).stdout)
    assert first["rejected"] == {"empty file": 1, "missing file": 1}
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (tmp_path / "missing").rename(folder / "train2017" / names[0])
    again = json.loads(run_shards(*command).stdout)
    assert again["rejected"] == {"empty file": 1}
    assert again["images_packed"] == first["images_packed"] + 1
    assert sum(path.stat().st_mtime_ns != time for path, time in before.items()) == 1
    assert run_shards("verify", out).returncode == 0


# ------------------------------------------------------------------------- what an image may cost


def scan_bomb() -> bytes:
    """A JPEG of 40 megapixels in little space, with one scan repeated until it takes for ever."""
    file = io.BytesIO()
    Image.new("L", (8000, 5000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last_scan * 200 + data[-2:]


def test_an_image_that_takes_too_long_is_left_out_alone(scenes: Scenes, tmp_path: Path) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    bad = annotations["images"][7]
    (folder / "train2017" / bad["file_name"]).write_bytes(scan_bomb())
    started = time.monotonic()
    done = run_shards(
        *build_command(folder, scenes, tmp_path / "out", "--max_rejected", 0.1, "--json")
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rejected"] == {"too costly": 1}
    (line,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["file_name"] == bad["file_name"]
    assert "takes more than 2 s" in line
    assert time.monotonic() - started < 20  # 2 s for the bomb, and the shard once more


@pytest.mark.parametrize(
    ("work", "reason", "detail"),
    [
        # pytest would print where the process died
        (lambda: (faulthandler.disable(), os.abort()), "crash", "SIGABRT"),
        (lambda: (faulthandler.disable(), signal.raise_signal(11)), "crash", "SIGSEGV"),
        (lambda: os._exit(3), "crash", "without an answer"),
        (lambda: sum(range(10**12)), "too costly", "more than 2 s"),
        (lambda: (limit_memory(), np.zeros(4 << 30, np.uint8)), "too costly", "memory"),
    ],
)
def test_a_decoder_may_die_alone(work: object, reason: str, detail: str) -> None:
    with pytest.raises(RejectedImageError) as caught:
        bounded_in_own_process(work)  # type: ignore[arg-type]
    assert caught.value.reason == reason
    assert detail in caught.value.detail


# ----------------------------------------------------------------------------- a machine that fails


def large_images(scenes: Scenes, folder: Path) -> Path:
    """The drawn data set with images that take a while each."""
    data, annotations = coco_folder(scenes, folder)
    large = folder / "large.jpg"
    Image.effect_noise((2500, 2500), 50).convert("RGB").save(large)
    for image in annotations["images"]:
        path = data / "train2017" / image["file_name"]
        path.unlink()
        os.link(large, path)
    return data


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_build_says_how_to_go_on(
    scenes: Scenes, tmp_path: Path, number: int, code: int
) -> None:
    data = large_images(scenes, tmp_path / "data")
    out = tmp_path / "out"
    command = build_command(data, scenes, out, "--workers", 2)
    build = psutil.Popen(
        [sys.executable, "-m", "shards", *map(str, command)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not list(out.glob("train-*.json")):
        assert build.poll() is None
        time.sleep(0.05)
    children = build.children(recursive=True)
    os.killpg(build.pid, number)  # as a terminal does
    asked = time.monotonic()
    _, said = build.communicate(timeout=30)
    assert time.monotonic() - asked < 2
    assert build.returncode == code
    assert "run the same command again to continue" in said
    assert "Traceback" not in said
    assert psutil.wait_procs(children, timeout=2)[1] == []
    assert list(out.glob(".*")) == []


def test_a_vanished_source_stops_the_build(scenes: Scenes, tmp_path: Path) -> None:
    data = large_images(scenes, tmp_path / "data")
    command = build_command(data, scenes, tmp_path / "out", "--workers", 2)
    build = subprocess.Popen(
        [sys.executable, "-m", "shards", *map(str, command)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list((tmp_path / "out").glob("train-*.json")):
        assert build.poll() is None
        time.sleep(0.05)
    (data / "train2017").rename(tmp_path / "elsewhere")
    _, said = build.communicate(timeout=30)
    assert build.returncode == 2
    assert "train2017: the image folder is gone" in said
    assert "Traceback" not in said


def test_a_full_disk_is_one_line_and_nothing_half_written(scenes: Scenes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    try:
        done = run_shards(*build_command(scenes.data, scenes, out))
        left = [path.name for path in out.iterdir()]
    finally:
        subprocess.run(["umount", str(out)], check=True)
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert str(out) in done.stderr
    assert "Traceback" not in done.stderr
    assert not [name for name in left if name.startswith(".")]
    assert all(Path(name).with_suffix(".tar").name in left for name in left if "-0" in name)


def test_a_folder_that_cannot_be_written_is_one_line(scenes: Scenes, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    done = run_shards(*build_command(scenes.data, scenes, tmp_path / "out"))
    assert done.returncode == 2
    assert str(tmp_path / "out") in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --------------------------------------------------------------------------------- launch/ and page


def test_the_kubernetes_jobs_use_options_that_exist() -> None:
    helps = (run_shards(command, "--help").stdout for command in ("build", "finalize"))
    known = {option for text in helps for option in re.findall(r"--[a-z_]+", text)}
    jobs = list(yaml.safe_load_all((ROOT / "launch/kubernetes/build-shards.yaml").read_text()))
    assert [job["kind"] for job in jobs] == ["Job", "Job"]
    for job in jobs:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        options = {arg.partition("=")[0] for arg in container["args"] if arg.startswith("--")}
        assert options
        assert {f"--{option[2:].replace('-', '_')}" for option in options} <= known
    count = jobs[0]["spec"]["completions"]
    assert re.search(rf"--job[-_]count={count}\b", str(jobs[0]))


def test_show_writes_a_page_of_images(scenes: Scenes, tmp_path: Path) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    for entry in annotations["annotations"]:
        entry["caption"] = "<b>a circle & a zebra</b>"
    save_annotations(folder, annotations)
    out, page = tmp_path / "out", tmp_path / "page.html"
    assert run_shards(*build_command(folder, scenes, out, "--max_unk", 1)).returncode == 0
    assert run_shards("show", out, "--limit", 4, "--html", page).returncode == 0
    text = page.read_text()
    assert text.count('src="data:image/jpeg;base64,') == 4
    assert text.count("&lt;b&gt;a circle &amp; a zebra&lt;/b&gt;") == 20
    assert "<b>" not in text
    assert '<span class="word unknown">&lt;unk&gt;<sub>3</sub></span>' in text


def test_verify_fast_reads_no_tar(scenes: Scenes, tmp_path: Path) -> None:
    out = tmp_path / "train"
    shutil.copytree(scenes.train, out)
    tar = out / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[2000] ^= 1
    tar.write_bytes(data)
    assert run_shards("verify", out, "--fast").returncode == 0
    assert run_shards("verify", out).returncode == 1
    tar.write_bytes(data[:-512])
    done = run_shards("verify", out, "--fast")
    assert done.returncode == 1
    assert "train-000001.json: num_bytes is" in done.stdout
