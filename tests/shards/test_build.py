"""The shard builder, through its command line: whole, repeatable, and honest about what is bad."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
import webdataset
from PIL import Image
from support.repository import ROOT
from support.shards import (
    Scenes,
    build_command,
    build_shards,
    coco_folder,
    digests,
    run_shards,
    save_annotations,
)

from shards.format.index import read_index
from shards.format.manifest import Manifest, read_manifest
from shards.verify import verify


def test_the_bytes_do_not_depend_on_workers(scenes: Scenes, tmp_path: Path) -> None:
    options = ("--samples_per_shard", 10, "--resize_short", 48)
    build_shards(scenes.data, "train", scenes.tokenizer, tmp_path, *options, "--workers", 3)
    assert digests(tmp_path) == digests(scenes.train)


def test_a_build_started_again_does_only_what_is_missing(scenes: Scenes, tmp_path: Path) -> None:
    out = tmp_path / "train"
    shutil.copytree(scenes.train, out)
    (out / "manifest.json").unlink()
    (out / "train-000002.json").unlink()  # as after a kill between tar and sidecar
    killed = subprocess.Popen(["true"])
    killed.wait()
    half = out / f".train-000002.tar.{socket.gethostname()}-{killed.pid}.tmp"
    half.write_bytes(b"half a tar")
    before = (out / "train-000001.tar").stat().st_mtime_ns
    options = ("--samples_per_shard", 10, "--resize_short", 48, "--workers", 1)
    build_shards(scenes.data, "train", scenes.tokenizer, out, *options)
    assert digests(out) == digests(scenes.train)
    assert (out / "train-000001.tar").stat().st_mtime_ns == before


def test_shards_of_another_build_are_not_mixed_in(scenes: Scenes, tmp_path: Path) -> None:
    out = tmp_path / "train"
    shutil.copytree(scenes.train, out)
    done = run_shards(*build_command(scenes.data, scenes, out, "--resize_short", 32))
    assert done.returncode == 2
    assert "another source, tokenizer or options" in done.stderr
    assert digests(out) == digests(scenes.train)


def test_other_readers_read_the_tars(scenes: Scenes) -> None:
    manifest, index = read_manifest(scenes.train), read_index(scenes.train)
    tars = [str(scenes.train / shard.file) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert [s["__key__"] for s in samples] == [index.key(n) for n in range(len(index))]
    meta = json.loads(samples[0]["json"])
    assert set(meta) == {
        "image_id", "file_name", "width", "height", "captions", "tokens",
    }  # fmt: skip
    listed = subprocess.run(["tar", "-tf", tars[0]], capture_output=True, text=True, check=True)
    keys = [index.key(n) for n in range(int(index.shard_starts[1]))]
    assert listed.stdout.split() == [f"{key}.{part}" for key in keys for part in ("jpg", "json")]


def test_what_is_bad_is_named_counted_and_left_out(scenes: Scenes, tmp_path: Path) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    images = [image["file_name"] for image in annotations["images"]]
    (folder / "train2017" / images[0]).unlink()
    truncated = folder / "train2017" / images[1]
    truncated.write_bytes(truncated.read_bytes()[:-200])
    (folder / "train2017" / images[2]).write_bytes(b"not an image")
    annotations["images"][3]["file_name"] = "../val2017/" + images[3]
    ids = [image["id"] for image in annotations["images"]]
    for entry in annotations["annotations"]:
        if entry["image_id"] == ids[4]:
            entry["caption"] = " "
    next(e for e in annotations["annotations"] if e["image_id"] == ids[5])["caption"] = ""
    save_annotations(folder, annotations)
    out = tmp_path / "out"

    done = run_shards(*build_command(folder, scenes, out))
    assert done.returncode == 2
    assert "--max_rejected" in done.stderr
    assert "quarantine.jsonl" in done.stderr
    assert not (out / "manifest.json").exists()

    done = run_shards(*build_command(folder, scenes, out, "--max_rejected", 0.1, "--json"))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["images_packed"] == len(images) - 5
    assert summary["rejected"] == {
        "damaged image": 1, "empty caption": 6, "format not allowed": 1, "missing file": 1,
        "no caption": 1, "unsafe file name": 1,
    }  # fmt: skip
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    whole = {line["image_id"]: line["reason"] for line in lines if line["caption"] is None}
    assert whole == {
        ids[0]: "missing file", ids[1]: "damaged image", ids[2]: "format not allowed",
        ids[3]: "unsafe file name", ids[4]: "no caption",
    }  # fmt: skip
    assert run_shards("verify", out).returncode == 0


def test_text_that_is_not_utf8_is_left_out(scenes: Scenes, tmp_path: Path) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    names = ["a\0.jpg", "b\ud83d.jpg", "c" * 300 + ".jpg", "line\u2028two.jpg"]
    images = annotations["images"]
    for image, name in zip(images, names, strict=False):
        image["file_name"] = name
    half_emoji = next(e for e in annotations["annotations"] if e["image_id"] == images[9]["id"])
    half_emoji["caption"] = "a circle \ud83d"
    save_annotations(folder, annotations)
    tokenizer = tmp_path / "tokenizer.json"
    done = run_shards(
        "tokenizer", "--annotations", folder / "annotations" / "captions_train2017.json",
        "--out", tokenizer, "--min_count", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert " from 314 captions;" in done.stdout
    assert "captions skipped, not UTF-8: 1" in done.stdout

    out = tmp_path / "out"
    done = run_shards(*build_command(folder, scenes, out, "--max_rejected", 0.1, "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rejected"] == {
        "caption not UTF-8": 1, "missing file": 1, "unsafe file name": 3,
    }  # fmt: skip
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_bytes().splitlines()]
    told = {line["image_id"]: (line["file_name"], line["caption"]) for line in lines}
    assert told == {
        images[0]["id"]: ("a\0.jpg", None),
        images[1]["id"]: ("b\\ud83d.jpg", None),
        images[2]["id"]: (names[2], None),
        images[3]["id"]: (names[3], None),
        images[9]["id"]: (images[9]["file_name"], 0),
    }
    assert run_shards("verify", out).returncode == 0


def test_a_named_pipe_is_not_waited_for(scenes: Scenes, tmp_path: Path) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    pipe = folder / "train2017" / annotations["images"][0]["file_name"]
    pipe.unlink()
    os.mkfifo(pipe)
    command = build_command(folder, scenes, tmp_path / "out", "--max_rejected", 0.1, "--json")
    done = run_shards(*command)
    assert json.loads(done.stdout)["rejected"] == {"missing file": 1}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_leaves_no_process(scenes: Scenes, tmp_path: Path, number: int) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    large = tmp_path / "large.jpg"  # each takes a while: the kill comes amid the work
    Image.effect_noise((3000, 3000), 50).convert("RGB").save(large)
    for image in annotations["images"]:
        path = folder / "train2017" / image["file_name"]
        path.unlink()
        os.link(large, path)
    command = build_command(folder, scenes, tmp_path / "out", "--workers", 2)
    build = psutil.Popen(
        [sys.executable, "-m", "shards", *map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    children: list[psutil.Process] = []
    try:
        while not list((tmp_path / "out").glob("train-*.json")):  # one of 7 shards
            assert build.poll() is None
            time.sleep(0.05)
        children = build.children(recursive=True)
        assert len(children) >= 2
        build.send_signal(number)
        build.wait()
        assert psutil.wait_procs(children, timeout=10)[1] == []
    finally:
        for process in [build, *children]:
            if process.is_running():
                process.kill()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.pop("images"), "no list `images`"),
        (lambda a: a["images"][2].pop("file_name"), "images[2] has no str `file_name`"),
        (lambda a: a["annotations"][3].update(caption=7), "annotations[3] has no str `caption`"),
        (lambda a: a["annotations"][0].update(image_id=999), "image 999"),
        (lambda a: a["images"].append(dict(a["images"][0])), "more than once"),
        (lambda a: a["images"].clear(), "lists no image"),
    ],
)
def test_a_wrong_annotation_file_is_refused(
    scenes: Scenes, tmp_path: Path, spoil: object, message: str
) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    spoil(annotations)  # type: ignore[operator]
    save_annotations(folder, annotations)
    done = run_shards(*build_command(folder, scenes, tmp_path / "out"))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "nowhere"), "nowhere: no such folder"),
        (("--tokenizer", "nowhere.json"), "nowhere.json: no such tokenizer"),
        (("--annotations", "nowhere.json"), "nowhere.json: no such annotation file"),
        (("--quality", 0), "--quality"),
        (("--resize_short", -1), "--resize_short"),
        (("--workers", 0), "--workers"),
        (("--samples_per_shard", 0), "--samples_per_shard: must be a whole number of 1 or more"),
        (("--max_rejected", 5), "--max_rejected: must be a share"),
        (("--job_index", 0), "must be given together"),
        (("--job_index", 3, "--job_count", 3), "--job_index must be 0 to 2"),
        (("--name", "../x"), "--name"),
    ],
)
def test_wrong_options_are_one_line(
    scenes: Scenes, tmp_path: Path, options: tuple, message: str
) -> None:
    done = run_shards(*build_command(scenes.data, scenes, tmp_path / "out", *options))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_verify_finds_any_flipped_byte(scenes: Scenes, tmp_path: Path) -> None:
    assert json.loads(run_shards("verify", scenes.train, "--json").stdout) == {
        "images": 63, "faults": [],
    }  # fmt: skip
    spoilt = quarantining_build(scenes, tmp_path)
    kinds = {
        "train-000000.tar", "train-000000.json", "index.npz", "manifest.json", "tokenizer.json",
        "quarantine.jsonl",
    }  # fmt: skip
    assert kinds <= {path.name for path in spoilt.iterdir()}
    for name in sorted(kinds):
        whole = (spoilt / name).read_bytes()
        for share in (0.1, 0.5, 0.9):
            data = bytearray(whole)
            data[int(len(data) * share)] ^= 0x02  # a digit stays a digit: JSON stays JSON
            (spoilt / name).write_bytes(data)
            faults = faults_of(spoilt)
            assert name in "\n".join(faults), (name, share, faults)
        (spoilt / name).write_bytes(whole)
    assert faults_of(spoilt) == []


def quarantining_build(scenes: Scenes, tmp_path: Path) -> Path:
    """A data set of one shard of a few samples, with one caption in quarantine."""
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    annotations["images"] = annotations["images"][:3]
    kept = {image["id"] for image in annotations["images"]}
    annotations["annotations"] = [e for e in annotations["annotations"] if e["image_id"] in kept]
    annotations["annotations"][0]["caption"] = " "
    save_annotations(folder, annotations)
    done = run_shards(*build_command(folder, scenes, tmp_path / "spoilt", "--max_rejected", 0.5))
    assert done.returncode == 0, done.stderr
    return tmp_path / "spoilt"


def faults_of(folder: Path) -> list[str]:
    """What `verify` says of a data set, its refusal to read it included."""
    try:
        return [fault for _, faults in verify(folder) for fault in faults]
    except ValueError as error:
        return [str(error)]


@pytest.mark.parametrize("field", [field.name for field in fields(Manifest)])
def test_verify_names_the_manifest_field_that_differs(
    scenes: Scenes, tmp_path: Path, field: str
) -> None:
    out = tmp_path / "train"
    shutil.copytree(scenes.train, out)
    value = json.loads((out / "manifest.json").read_text())
    if field == "shards":
        value["shards"].pop()
    elif isinstance(value[field], dict):
        value[field]["resize_short"] = 47
    else:
        value[field] = value[field] + 1 if isinstance(value[field], int) else "x"
    (out / "manifest.json").write_text(json.dumps(value))
    (fault,) = faults_of(out)
    assert "manifest.json" in fault
    assert field in fault


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("file", "x.tar"), ("num_samples", 1), ("num_bytes", 1), ("sha256", "x")],
)
def test_verify_names_the_shard_entry_that_differs(
    scenes: Scenes, tmp_path: Path, field: str, wrong: object
) -> None:
    out = tmp_path / "train"
    shutil.copytree(scenes.train, out)
    value = json.loads((out / "manifest.json").read_text())
    value["shards"][2][field] = wrong
    (out / "manifest.json").write_text(json.dumps(value))
    (fault,) = faults_of(out)
    assert fault.startswith(f"manifest.json: {field} of train-000002.tar is {wrong!r}")


def test_verify_names_an_index_of_fewer_shards(scenes: Scenes, tmp_path: Path) -> None:
    out = tmp_path / "train"
    shutil.copytree(scenes.train, out)
    shutil.copy(scenes.val / "index.npz", out)
    done = run_shards("verify", out)
    assert done.returncode == 1
    assert "index.npz: 7 samples in 1 shard" in done.stdout
    assert "Traceback" not in done.stderr


def test_verify_goes_on_after_a_shard_that_cannot_be_checked(
    scenes: Scenes, tmp_path: Path
) -> None:
    out = tmp_path / "train"
    shutil.copytree(scenes.train, out)
    (out / "train-000001.tar").unlink()
    (out / "train-000001.json").unlink()
    (out / "train-000002.json").write_text("x")
    (out / "train-000003.json").unlink()
    damaged = bytearray((out / "train-000005.tar").read_bytes())
    damaged[600] ^= 1
    (out / "train-000005.tar").write_bytes(damaged)
    faults = faults_of(out)
    assert [fault.split(": ")[0] for fault in faults if ".json" in fault] == [
        "train-000002.json", "train-000003.json",
    ]  # fmt: skip
    assert "train-000001.tar: is missing" in faults
    assert any(fault.startswith("train-000005") for fault in faults)


def test_a_sidecar_of_another_format_version_is_refused(scenes: Scenes, tmp_path: Path) -> None:
    out = tmp_path / "train"
    shutil.copytree(scenes.train, out)
    sidecar = out / "train-000002.json"
    sidecar.write_text(sidecar.read_text().replace('"format_version":2', '"format_version":3'))
    options = ("--resize_short", 48)
    done = run_shards(*build_command(scenes.data, scenes, out, *options))
    assert done.returncode == 2
    assert f"{sidecar}: has format version 3, not 2" in done.stderr
    assert "Traceback" not in done.stderr
    (fault,) = faults_of(out)
    assert fault.startswith(f"{sidecar.name}: has format version 3, not 2")


def test_a_tokenizer_is_written_whole_or_not_at_all(scenes: Scenes, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    annotations = scenes.data / "annotations" / "captions_val2017.json"
    done = run_shards(
        "tokenizer", "--annotations", annotations, "--out", taken, "--min_count", 1
    )  # a folder cannot be replaced by a file: the writing fails at its last step
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(taken) in done.stderr
    assert list(tmp_path.iterdir()) == [taken]


def test_show_prints_captions_and_tokens(scenes: Scenes) -> None:
    done = run_shards("show", scenes.train, "--limit", 2)
    assert done.returncode == 0
    assert "63 images with 315 captions in 7 shards" in done.stdout
    assert done.stdout.count(" from 0000") == 2
    assert " background ." in done.stdout


def test_original_bytes_are_packed_untouched(scenes: Scenes, tmp_path: Path) -> None:
    build_shards(
        scenes.data, "val", scenes.tokenizer, tmp_path, "--resize_short", 0, "--workers", 1
    )
    tars = [str(tmp_path / shard.file) for shard in read_manifest(tmp_path).shards]
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        name = json.loads(sample["json"])["file_name"]
        assert sample["jpg"] == (scenes.data / "val2017" / name).read_bytes()


def test_odd_things_in_the_place_of_images_are_named(scenes: Scenes, tmp_path: Path) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    images = folder / "train2017"
    names = [image["file_name"] for image in annotations["images"][:3]]
    for name in names[:2]:
        (images / name).unlink()
    (images / names[0]).mkdir()
    (images / names[1]).symlink_to(names[1])
    annotations["images"][2]["file_name"] = f"{names[0]}/inside.jpg"
    annotations["images"][3]["file_name"] += "/inside.jpg"
    save_annotations(folder, annotations)
    done = run_shards(
        *build_command(folder, scenes, tmp_path / "out", "--max_rejected", 0.1, "--json")
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rejected"] == {"missing file": 3, "unreadable file": 1}


def test_what_would_destroy_something_is_refused(scenes: Scenes, tmp_path: Path) -> None:
    out = tmp_path / "train"
    shutil.copytree(scenes.train, out)
    annotations = scenes.data / "annotations" / "captions_val2017.json"
    for command, message in (
        (("show", out, "--html", out / "manifest.json"), "must end in .html"),
        (("tokenizer", "--annotations", annotations, "--out", out / "manifest.json"), "tokenizer"),
        (("build", "--webdataset", out, "--tokenizer", scenes.tokenizer, "--out", out), "--out"),
    ):
        done = run_shards(*command)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert digests(out) == digests(scenes.train)


def test_verify_names_a_stray_tar_and_a_manifest_that_is_none(
    scenes: Scenes, tmp_path: Path
) -> None:
    out = tmp_path / "train"
    shutil.copytree(scenes.train, out)
    (out / "stray.tar").write_bytes(b"")
    done = run_shards("verify", out)
    assert done.returncode == 1
    assert "stray.tar: does not belong to this data set" in done.stdout
    assert "remove its .tar and .json and run the same build again" in done.stdout
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(text.replace('"num_samples": 63', '"num_samples": "x"'))
    done = run_shards("verify", out)
    assert done.returncode == 2
    assert "num_samples is not a number" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_too_much_quarantine_says_why(scenes: Scenes, tmp_path: Path) -> None:
    annotations = scenes.data / "annotations" / "captions_train2017.json"
    done = run_shards("build", "--images", scenes.data / "val2017", "--annotations", annotations,
                      "--tokenizer", scenes.tokenizer, "--out", tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert "missing file: 63, such as 0000000000" in done.stderr
    assert "File names are relative to the folder that --images names" in done.stderr
