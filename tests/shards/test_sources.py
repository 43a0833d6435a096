"""Captioned data sets of every form, through the command line."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from support.shards import Scenes, build_command, coco_folder, digests, run_shards, save_annotations

from shards.format.manifest import read_manifest
from shards.format.names import KEY_CHARACTERS
from shards.sources.record import MAX_KEY, name_key
from shards.verify import verify


def packed(folder: Path) -> dict[str, tuple[list[str], bytes]]:
    """File name -> captions and image of every sample, once `verify` found no fault."""
    assert [fault for _, faults in verify(folder) for fault in faults] == []
    tars = [str(folder / shard.file) for shard in read_manifest(folder).shards]
    found = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
        meta = json.loads(sample["json"])
        found[meta["file_name"]] = (meta["captions"], sample["jpg"])
    return found


def build(scenes: Scenes, out: Path, *source: object) -> dict[str, tuple[list[str], bytes]]:
    done = run_shards("build", "--tokenizer", scenes.tokenizer, "--out", out, "--workers", 1,
                      "--samples_per_shard", 10, "--resize_short", 48, *source)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return packed(out)


def rows_of(scenes: Scenes) -> list[tuple[str, str]]:
    """(file name, caption) of each caption of the training images."""
    path = scenes.data / "annotations" / "captions_train2017.json"
    annotations = json.loads(path.read_text())
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    return [(names[e["image_id"]], e["caption"]) for e in annotations["annotations"]]


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps({"file": n, "text": c}) + "\n" for n, c in rows), "utf-8"
        )
        return
    with open(path, "w", newline="") as file:
        tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
        writer = csv.writer(file, **(tabs if path.suffix == ".tsv" else {}))
        writer.writerows([("file", "number", "text"), *((n, 0, c) for n, c in rows)])


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_rows_of_one_image_are_brought_together(scenes: Scenes, tmp_path: Path, kind: str) -> None:
    rows = rows_of(scenes)
    rows = rows[::2] + rows[1::2]  # not sorted by image
    lines = " " if kind == "tsv" else "\n"  # which has no way to write a line's end
    rows[0] = (rows[0][0], f'a "quoted", listed{lines}caption')
    rows[1] = (rows[1][0], '"opened and not closed')
    table = tmp_path / f"captions.{kind}"
    write_table(table, rows)
    found = build(scenes, tmp_path / "out", "--images", scenes.data / "train2017",
                  "--annotations", table, "--image_column", "file",
                  "--caption_column", "text", "--max_unk", 1)  # fmt: skip
    wanted: dict[str, list[str]] = {}
    for name, caption in rows:
        wanted.setdefault(name, []).append(caption)
    assert {name: captions for name, (captions, _) in found.items()} == wanted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"image,caption\na.jpg\n", "line 2 has 1 columns, not 2"),
        ("t.csv", b"file,caption\n", "line 1 has no column 'image'"),
        ("t.csv", b'image,caption\na.jpg,"open\n', "line 2"),
        ("t.csv", b"image,caption\na.jpg,x\n ,y\n", "line 3 names no image"),
        ("t.csv", b"image,caption\na.jpg,x\na.jpg,\xff\n", "line 3 is not UTF-8"),
        ("t.csv", b"image,caption\n", "lists no image"),
        ("t.jsonl", b'{"image": "a.jpg", "caption": "x"}\n{"image": \n', "line 2: not JSON"),
        ("t.jsonl", b'{"image": "a.jpg", "caption": [1]}\n', "line 1 has no `caption`"),
        ("t.jsonl", b'{"caption": "x"}\n', "line 1 has no str `image`"),
        ("t.jsonl", b"[]\n", "line 1 has no"),
    ],
)
def test_a_wrong_line_of_a_table_is_named(
    scenes: Scenes, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = run_shards("build", "--images", scenes.data / "train2017", "--tokenizer",
                      scenes.tokenizer, "--out", tmp_path / "out", "--workers", 1,
                      "--annotations", tmp_path / name)  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def karpathy(scenes: Scenes, path: Path, with_coco_ids: bool) -> dict:
    rows: dict[str, list[str]] = {}
    for name, caption in rows_of(scenes):
        rows.setdefault(name, []).append(caption)
    images = []
    for number, (name, captions) in enumerate(sorted(rows.items())):
        image = {
            "filename": name,
            "imgid": number,
            "split": ("train", "restval", "val", "test")[number % 4],
            "sentences": [{"raw": text, "sentid": n} for n, text in enumerate(captions)],
        }
        images.append(image | ({"cocoid": 1000 + number} if with_coco_ids else {}))
    path.write_text(json.dumps({"dataset": "flickr8k", "images": images}))
    return {image["filename"]: image for image in images}


@pytest.mark.parametrize("with_coco_ids", [True, False])
def test_karpathys_splits(scenes: Scenes, tmp_path: Path, with_coco_ids: bool) -> None:
    annotations = tmp_path / "dataset.json"
    images = karpathy(scenes, annotations, with_coco_ids)
    out = tmp_path / "out"
    found = build(scenes, out, "--images", scenes.data / "train2017", "--annotations", annotations,
                  "--split", "train", "--split", "restval")  # fmt: skip
    wanted = {n: i for n, i in images.items() if i["split"] in ("train", "restval")}
    assert {name: captions for name, (captions, _) in found.items()} == {
        name: [sentence["raw"] for sentence in image["sentences"]] for name, image in wanted.items()
    }
    ids = {int(key) for key in read_keys(out)}
    assert ids == {image["cocoid" if with_coco_ids else "imgid"] for image in wanted.values()}


def read_keys(folder: Path) -> set[str]:
    tars = [str(folder / shard.file) for shard in read_manifest(folder).shards]
    return {sample["__key__"] for sample in webdataset.WebDataset(tars, shardshuffle=False)}


@pytest.mark.parametrize(
    ("options", "message"),
    [((), "it has train (16), restval (16), val (16), test (15)"),
     (("--split", "tset"), "no split tset; it has")],
)  # fmt: skip
def test_a_split_must_be_named(
    scenes: Scenes, tmp_path: Path, options: tuple, message: str
) -> None:
    karpathy(scenes, tmp_path / "dataset.json", with_coco_ids=True)
    done = run_shards("tokenizer", "--annotations", tmp_path / "dataset.json",
                      "--out", tmp_path / "t.json", *options)  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr


def foreign_tars(scenes: Scenes, folder: Path, captions_as: str) -> dict[str, str]:
    """Tars as others write them, with keys of any form. Returns image member -> caption."""
    folder.mkdir()
    rows = dict(rows_of(scenes))
    wanted = {}
    for number, names in enumerate((sorted(rows)[:5], sorted(rows)[5:9])):
        tar_name = f"shard {number}.tar"
        with tarfile.open(folder / tar_name, "w", format=tarfile.PAX_FORMAT) as tar:
            for position, name in enumerate(names):
                key = f"./Part/{position:04d}"  # the same in both tars
                caption = rows[name]
                text = caption if captions_as == "txt" else json.dumps({"caption": caption})
                image = (scenes.data / "train2017" / name).read_bytes()
                for part, data in (("jpg", image), (captions_as, text.encode())):
                    info = tarfile.TarInfo(f"{key}.{part}")
                    info.size = len(data)
                    info.pax_headers = {"comment": "a pax header before every member"}
                    tar.addfile(info, io.BytesIO(data))
                wanted[f"{tar_name}/{key}.jpg"] = caption
    return wanted


@pytest.mark.parametrize("captions_as", ["txt", "json"])
def test_a_foreign_webdataset_is_packed_again(
    scenes: Scenes, tmp_path: Path, captions_as: str
) -> None:
    wanted = foreign_tars(scenes, tmp_path / "tars", captions_as)
    found = build(scenes, tmp_path / "out", "--webdataset", tmp_path / "tars")
    assert {name: captions for name, (captions, _) in found.items()} == {
        name: [caption] for name, caption in wanted.items()
    }


def test_our_own_shards_packed_again_keep_ids_captions_and_bytes(
    scenes: Scenes, tmp_path: Path
) -> None:
    build(scenes, tmp_path / "out", "--webdataset", scenes.train)
    tars = {name for name in digests(scenes.train) if name.endswith(".tar")}
    again, before = (
        {s["__key__"]: (json.loads(s["json"])["captions"], s["jpg"]) for s in
         webdataset.WebDataset([str(folder / tar) for tar in sorted(tars)], shardshuffle=False)}
        for folder in (tmp_path / "out", scenes.train)
    )  # fmt: skip
    assert again == before


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_no_sample_of_a_foreign_tar_is_overlooked(scenes: Scenes, tmp_path: Path) -> None:
    image = next((scenes.data / "train2017").iterdir()).read_bytes()
    text = b"a red circle"
    members = [
        ("a.v2.jpg", image), ("a.v2.txt", text), ("b.gif", image), ("b.txt", text),
        ("c.txt", text), ("d.jpg", image), ("d.txt", text), ("e.cls", b"7"),
        ("caf\u00e9.jpg", image), ("caf\u00e9.txt", text),
    ]  # fmt: skip
    path = tmp_path / "tars" / "0.tar"
    write_tar(path, members)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("linked.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "d.jpg"
        tar.addfile(link)
        caption = tarfile.TarInfo("linked.txt")
        caption.size = len(text)
        tar.addfile(caption, io.BytesIO(text))
    out = tmp_path / "out"
    command = ("build", "--webdataset", path.parent, "--tokenizer", scenes.tokenizer,
               "--out", out, "--workers", 1, "--max_rejected", 1, "--json")  # fmt: skip
    done = run_shards(*command)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rejected"] == {"no image": 1}  # c has no image; what b is, its bytes say
    tars = [str(out / shard.file) for shard in read_manifest(out).shards]
    samples = webdataset.WebDataset(tars, shardshuffle=False)
    sources = sorted(json.loads(sample["json"])["file_name"] for sample in samples)
    wanted = ("a.v2.jpg", "b.gif", "caf\u00e9.jpg", "d.jpg", "d.jpg")  # a link is its file
    assert sources == [f"0.tar/{name}" for name in wanted]
    write_tar(path, [*members, ("d.jpg", image)])
    done = run_shards(*command)
    assert done.returncode == 2
    assert "d.jpg occurs more than once" in done.stderr
    write_tar(path.parent / "more" / "1.tar", members)
    write_tar(path, members)
    done = run_shards(*command)
    assert "1.tar: would be overlooked" in done.stderr


def test_a_damaged_foreign_tar_is_refused(scenes: Scenes, tmp_path: Path) -> None:
    foreign_tars(scenes, tmp_path / "tars", "txt")
    path = tmp_path / "tars" / "shard 0.tar"
    whole = path.read_bytes()
    for spoilt, said in (
        (whole + whole, "that belongs to no member"),  # tarfile stops at the first end mark
        (whole[: len(whole) // 2], "incomplete tar"),
        (whole[:9000] + b"\0" * 3000 + whole[12000:], "quarantine.jsonl names each"),
    ):
        path.write_bytes(spoilt)
        done = run_shards("build", "--webdataset", path.parent, "--tokenizer", scenes.tokenizer,
                          "--out", tmp_path / "out", "--workers", 1, "--json")  # fmt: skip
        lost = done.returncode == 0 and json.loads(done.stdout)["images_packed"] < 9
        assert not lost
        assert done.returncode == 0 or said in done.stderr


@given(st.text(min_size=1, max_size=300))
def test_a_key_of_any_name_fits_a_tar(name: str) -> None:
    key = name_key(name)
    assert key
    assert set(key) <= KEY_CHARACTERS
    assert len(key) <= MAX_KEY


def test_names_that_differ_in_odd_characters_get_different_keys() -> None:
    names = ["A.jpg", "a.jpg", "ä.jpg", "ö.jpg", "x/a.jpg", "x_a.jpg"]
    assert len({name_key(name) for name in names}) == len(names)
    assert name_key("a.png", plain=False) != name_key("a.jpg", plain=False)
    assert name_key("1000268201_693b08cb0e.jpg") == "1000268201_693b08cb0e"


def test_a_tokenizer_that_does_not_fit_is_refused(scenes: Scenes, tmp_path: Path) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    for entry in annotations["annotations"][::3]:
        entry["caption"] = "ein Zebra"
    save_annotations(folder, annotations)
    command = build_command(folder, scenes, tmp_path / "out")
    done = run_shards(*command)
    assert done.returncode == 2
    assert "more than --max_unk 5.0%" in done.stderr
    assert "'Zebra' (105)" in done.stderr
    assert not (tmp_path / "out").exists()
    done = run_shards(*command, "--max_unk", 0.3, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0.05 < report["unk_share"] < 0.3
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    shutil.rmtree(tmp_path / "out")
