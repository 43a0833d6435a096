"""Tars made by others become a data set without a byte of them being changed."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from support.shards import Scenes, digests, run_shards
from support.training import read_sample_log, train

from pipeline.config.data import DataConfig
from pipeline.data.dataset import EvalDataset, TrainDataset
from pipeline.data.reader import MAX_GAP, ShardFolder
from shards.format.index import read_index
from shards.format.manifest import read_manifest
from shards.format.names import INDEX
from shards.tokenizer import encode_all

CAPTIONS = ["A red circle on a green background.", "A circle."]


def made_image(number: int, form: str = "JPEG", **options: object) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (40 + number, 36), (5 * number, 90, 30)).save(data, form, **options)
    return data.getvalue()


def turned(number: int) -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return made_image(number, exif=exif)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two tars by webdataset's own writer and one by hand, with keys of any kind."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(2):
        with webdataset.TarWriter(str(folder / f"part{number}.tar")) as writer:
            for sample in range(20):
                caption = {"txt": CAPTIONS[0]} if sample % 2 else {"json": {"captions": CAPTIONS}}
                writer.write(
                    {"__key__": f"Photo_{sample:03d}", "jpg": made_image(sample), **caption}
                )
    with tarfile.open(folder / "z.tar", "w") as tar:
        for name, data in (
            ("a folder/X.1.TXT", CAPTIONS[0].encode()),
            ("a folder/X.1.JPEG", made_image(1)),
            ("a folder/X.1.npy", b"not ours"),
            ("7.caption.json", json.dumps({"caption": CAPTIONS[1]}).encode()),
            ("7.jpg", made_image(2)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes | tuple[bytes, str]]]) -> None:
    """A tar of files, and of links given as (type, target)."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                info.type, info.linkname = data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def sample(key: str, caption: bytes = b"A circle.", part: str = "txt") -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", made_image(1)), (f"{key}.{part}", caption)]


def named(folder: Path) -> set[tuple[str, int | None, str]]:
    entries = map(json.loads, (folder / "quarantine.jsonl").read_text().splitlines())
    return {(entry["file_name"], entry["caption"], entry["reason"]) for entry in entries}


def index(folder: Path, scenes: Scenes, *options: object) -> dict:
    done = run_shards("index", folder, "--tokenizer", scenes.tokenizer, "--json",
                      "--max_unk", 1, *options)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_samples_are_read_from_their_places_and_tokenised(tars: Path, scenes: Scenes) -> None:
    before = digests(tars)
    report = index(tars, scenes)
    assert report["images_packed"] == report["images_in"] == 42
    assert report["captions"] == 20 * 1 + 20 * 2 + 2
    after = digests(tars)
    assert {name: after[name] for name in before} == before
    shards = ShardFolder(tars)
    seen = set()
    for sample in range(42):
        key, image, meta = shards.read(sample)
        assert Image.open(io.BytesIO(image)).size[1] == 36
        assert meta["captions"] in (CAPTIONS, CAPTIONS[:1], CAPTIONS[1:])
        assert meta["tokens"] == encode_all(shards.tokenizer, meta["captions"])
        seen.add(key)
    assert len(seen) == 42  # the same keys stand in both tars
    batch = TrainDataset(shards, DataConfig(image_size=32), 0)[np.array([(0, 0), (0, 41)])]
    assert len(batch.ids) == 2
    assert not batch.bad
    assert len(EvalDataset(shards, 32)[np.arange(42)].references) == 42


def test_they_verify_show_and_train(tars: Path, scenes: Scenes, tmp_path: Path) -> None:
    index(tars, scenes)
    for command in (("verify",), ("verify", "--fast"), ("show", "--limit", 2)):
        done = run_shards(command[0], tars, *command[1:])
        assert done.returncode == 0, done.stdout + done.stderr
    assert CAPTIONS[0] in done.stdout
    run = train(1, "--data.train", tars, "--data.val", tars, "--run_dir", tmp_path / "run",
                "--train.epochs", 1, "--monitor.sample_log", tmp_path / "log")  # fmt: skip
    assert run.returncode == 0, run.stderr
    ids = [image_id for ids in read_sample_log(tmp_path / "log").values() for image_id in ids]
    assert len(set(ids)) == len(ids) == 42


def test_what_cannot_be_read_as_it_is_is_left_out_by_name(tars: Path, scenes: Scenes) -> None:
    with webdataset.TarWriter(str(tars / "odd.tar")) as writer:
        writer.write({"__key__": "drawn", "png": made_image(1, "PNG"), "txt": CAPTIONS[0]})
        writer.write({"__key__": "turned", "jpg": turned(1), "txt": CAPTIONS[0]})
        writer.write({"__key__": "cut", "jpg": made_image(1)[:200], "txt": CAPTIONS[0]})
        writer.write({"__key__": "silent", "jpg": made_image(1), "txt": " "})
        writer.write({"__key__": "good", "jpg": made_image(1), "txt": CAPTIONS[0]})
    refused = run_shards("index", tars, "--tokenizer", scenes.tokenizer, "--max_unk", 1)
    assert refused.returncode == 2
    assert "--max_rejected" in refused.stderr
    report = index(tars, scenes, "--max_rejected", 0.2)
    assert report["images_packed"] == 43
    lines = (tars / "quarantine.jsonl").read_text().splitlines()
    reasons = {(entry["file_name"], entry["reason"]) for entry in map(json.loads, lines)}
    assert ("odd.tar/drawn.png", "not an upright RGB JPEG") in reasons
    assert ("odd.tar/turned.jpg", "not an upright RGB JPEG") in reasons
    assert ("odd.tar/cut.jpg", "damaged image") in reasons
    assert ("odd.tar/silent.jpg", "no caption") in reasons


def test_a_tar_that_changed_since_is_noticed(tars: Path, scenes: Scenes) -> None:
    index(tars, scenes)
    found, manifest = read_index(tars), read_manifest(tars)
    path = tars / manifest.shards[1].file
    data = bytearray(path.read_bytes())
    data[int(found.meta_offset[25]) + 3] ^= 1
    path.write_bytes(data)
    done = run_shards("verify", tars)
    assert done.returncode == 1
    assert found.key(25) in done.stdout
    with pytest.raises(ValueError, match=rf"{path.name}.*{found.key(25)}"):
        ShardFolder(tars).read(25)


def test_every_tar_that_cannot_be_read_is_named(tars: Path, scenes: Scenes) -> None:
    index(tars, scenes)
    paths = [tars / shard.file for shard in read_manifest(tars).shards[:2]]
    for path in paths:
        os.truncate(path, path.stat().st_size // 2)
    done = run_shards("verify", tars)
    assert done.returncode == 1
    for path in paths:
        assert any(line.startswith(f"{path.name}: ") for line in done.stdout.splitlines())


def test_a_sample_lost_since_says_nothing_of_the_others(tars: Path, scenes: Scenes) -> None:
    """Not even where a whole tar is gone or new: the samples behind it have other numbers now."""
    index(tars, scenes)
    found, manifest = read_index(tars), read_manifest(tars)
    path = tars / manifest.shards[0].file
    whole = path.read_bytes()
    path.write_bytes(whole.replace(made_image(3), bytes(len(made_image(3)))))
    faults = run_shards("verify", tars).stdout.splitlines()
    about = [line for line in faults if INDEX in line and path.name in line]
    assert len(about) == 1
    assert found.key(3) in about[0]
    assert "format not allowed" in about[0]
    path.unlink()
    write_tar(tars / "zz.tar", sample("new"))
    faults = run_shards("verify", tars).stdout.splitlines()
    assert not any("z.tar" in line.replace("zz.tar", "") for line in faults)
    assert any(line.startswith("zz.tar: not in") for line in faults)
    assert f"{path.name}: is missing" in faults


def test_a_tar_added_after_indexing_is_reported(tars: Path, scenes: Scenes, tmp_path: Path) -> None:
    index(tars, scenes)
    moved = tmp_path / "moved"
    shutil.copytree(tars, moved)
    for options in ((), ("--fast",)):
        assert run_shards("verify", moved, *options).returncode == 0  # the folder's name is free
    write_tar(moved / "new.tar", sample("new"))
    for options in ((), ("--fast",)):
        done = run_shards("verify", moved, *options)
        assert done.returncode == 1
        assert "new.tar: not in index.npz" in done.stdout
        assert "index it again" in done.stdout
        assert ".json" not in done.stdout.replace("manifest.json", "")
    run = train(1, "--data.train", moved, "--run_dir", tmp_path / "run", "--train.steps", 1)
    assert run.returncode == 0, run.stderr
    assert "new.tar: added after the folder was indexed" in run.stderr


def test_what_is_wrong_with_one_sample_costs_that_sample_alone(
    scenes: Scenes, tmp_path: Path
) -> None:
    folder = tmp_path / "tars"
    write_tar(folder / "t.tar", [
        *sample("good"),
        *sample("half", rb'{"captions": ["\ud83d", " ", "A circle."]}', "json"),
        *sample("broken", b"{nope", "json"),
        *sample("latin", b"caf\xe9"),
        *sample("long", b"a" * (1 << 20) + b"b"),
        *sample("json", b'{"caption": "A circle."}'),
        *sample("braces", b"{}"),
        ("linked.jpg", (tarfile.SYMTYPE, "good.jpg")),
        ("linked.txt", (tarfile.SYMTYPE, "good.txt")),
        ("gone.jpg", (tarfile.LNKTYPE, "nothing")), ("gone.txt", b"A circle."),
    ])  # fmt: skip
    report = index(folder, scenes, "--max_rejected", 0.9)
    assert (report["images_in"], report["images_packed"], report["captions"]) == (9, 3, 3)
    assert named(folder) == {
        ("t.tar/half.jpg", 0, "caption not UTF-8"),
        ("t.tar/half.jpg", 1, "empty caption"),
        ("t.tar/broken.jpg", None, "unreadable captions"),
        ("t.tar/latin.jpg", None, "unreadable captions"),
        ("t.tar/long.jpg", None, "unreadable captions"),
        ("t.tar/json.jpg", None, "a .txt that is JSON with captions"),
        ("t.tar/linked.jpg", None, "no file in the tar"),
        ("t.tar/gone.jpg", None, "no file in the tar"),
    }
    shards = ShardFolder(folder)
    found = {key: meta["captions"] for key, _, meta in map(shards.read, range(3))}
    assert found == {"good": ["A circle."], "half": ["A circle."], "braces": ["{}"]}
    batch = TrainDataset(shards, DataConfig(image_size=32), 0)[np.array([(0, n) for n in range(3)])]
    assert batch.weights.sum(1).tolist() == [1, 1, 1]
    assert not batch.bad
    assert EvalDataset(shards, 32)[np.arange(3)].references == list(found.values())


def test_names_that_begin_with_dots_are_samples_of_their_own(
    scenes: Scenes, tmp_path: Path
) -> None:
    members = [*sample(".a"), *sample("..b"), *sample(""), *sample("c")]
    twins = [("._c.jpg", b"\0\x05\x16\x07"), ("._c.txt", b"\0\x05\x16\x07")]  # macOS adds them
    write_tar(tmp_path / "tars" / "t.tar", [*twins, *members])
    assert index(tmp_path / "tars", scenes)["images_packed"] == 4
    assert len({ShardFolder(tmp_path / "tars").read(number)[0] for number in range(4)}) == 4


def test_a_tar_without_a_sample_is_of_the_data_set(tars: Path, scenes: Scenes) -> None:
    write_tar(tars / "a.tar", [("notes.npy", b"none")])
    write_tar(tars / "part1a.tar", [])
    assert index(tars, scenes)["images_packed"] == 42
    done = run_shards("verify", tars)
    assert done.returncode == 0, done.stdout
    assert len({ShardFolder(tars).read(number)[0] for number in range(42)}) == 42


def test_no_sample_at_all_is_said_in_one_line(scenes: Scenes, tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "t.tar", [("notes.npy", b"none")])
    done = run_shards("index", tmp_path / "tars", "--tokenizer", scenes.tokenizer)
    assert done.returncode == 2
    assert "neither images nor captions" in done.stderr.splitlines()[-1]


def test_a_tokenizer_must_be_named(tars: Path) -> None:
    done = run_shards("index", tars)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--tokenizer" in done.stderr


def test_files_of_a_sample_may_lie_far_apart(scenes: Scenes, tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "t.tar", [
        ("a.jpg", made_image(1)), ("b.jpg", made_image(2)), ("a.npy", bytes(MAX_GAP + 1)),
        ("a.txt", b"A circle."), ("b.txt", b"A red circle."),
    ])  # fmt: skip
    index(tmp_path / "tars", scenes)
    shards = ShardFolder(tmp_path / "tars")
    found = [(image, meta["captions"]) for _, image, meta in map(shards.read, range(2))]
    assert found == [(made_image(1), ["A circle."]), (made_image(2), ["A red circle."])]


def test_links_to_one_file_in_tars_of_the_same_keys_are_refused(
    scenes: Scenes, tmp_path: Path
) -> None:
    for name in ("a.tar", "b.tar"):
        links = [(f"h.{part}", (tarfile.LNKTYPE, f"g.{part}")) for part in ("jpg", "txt")]
        write_tar(tmp_path / "tars" / name, [*sample("g"), *links])
    done = run_shards("index", tmp_path / "tars", "--tokenizer", scenes.tokenizer)
    assert done.returncode == 2
    assert "g.jpg" in done.stderr


def test_another_manifest_is_not_written_over(tars: Path, scenes: Scenes, tmp_path: Path) -> None:
    before = digests(scenes.train)
    done = run_shards("index", scenes.train, "--tokenizer", scenes.tokenizer, "--max_unk", 1)
    assert done.returncode == 2
    assert "manifest.json" in done.stderr
    assert digests(scenes.train) == before
    (tars / "manifest.json").write_text('{"by": "somebody else"}')
    done = run_shards("index", tars, "--tokenizer", scenes.tokenizer, "--max_unk", 1)
    assert done.returncode == 2
    assert "manifest.json" in done.stderr
    assert not (tars / "index.npz").exists()
