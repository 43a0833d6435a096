"""Dealing annotations: an image goes to one side, and stays there when others are added."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.shards import Scenes, run_shards

from shards.split import Part, Shares, deal

SHARES = Shares(val=0.3, test=0.2, seed=0)
ROWS = st.lists(
    st.tuples(st.integers(0, 60).map(lambda n: f"{n}.jpg"), st.text(max_size=8)), min_size=40
)
NO_FOLDER_EACH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def table(rows: list[tuple[str, str]], kind: str) -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps({"image": n, "caption": c}) + "\n" for n, c in rows).encode()
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("image", "caption"), *rows])
    return file.getvalue().encode()


def read_table(data: bytes, kind: str) -> list[tuple[str, str]]:
    text = data.decode()
    if kind == "jsonl":
        return [(row["image"], row["caption"]) for row in map(json.loads, text.splitlines())]
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["image", "caption"]
    return [(name, caption) for name, caption in rows]


def deal_rows(folder: Path, rows: list[tuple[str, str]], kind: str) -> dict[str, Part] | None:
    path = folder / f"captions.{kind}"
    path.write_bytes(table(rows, kind))
    if len({SHARES.side_of(name) for name, _ in rows}) < 3:
        with pytest.raises(ValueError, match="no image is in the split"):
            deal(path, "image", SHARES)
        return None
    return deal(path, "image", SHARES)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@NO_FOLDER_EACH
@given(rows=ROWS, more=ROWS)
def test_a_table_is_dealt_by_image(
    tmp_path: Path, kind: str, rows: list[tuple[str, str]], more: list[tuple[str, str]]
) -> None:
    parts = deal_rows(tmp_path, rows, kind)
    if parts is None:
        return
    dealt = {side: read_table(part.data, kind) for side, part in parts.items()}
    assert sorted(row for side in dealt.values() for row in side) == sorted(rows)
    images = {side: {name for name, _ in dealt[side]} for side in dealt}
    assert sum(map(len, images.values())) == len({name for name, _ in rows})
    for side, part in parts.items():
        assert dealt[side] == [row for row in rows if row[0] in images[side]]  # in their order
        assert (part.num_images, part.num_captions) == (len(images[side]), len(dealt[side]))
    larger = deal_rows(tmp_path, rows + [(name, "more") for name, _ in more], kind)
    assert larger is not None
    for side in images:
        assert images[side] <= {name for name, _ in read_table(larger[side].data, kind)}


@given(st.lists(st.integers(0, 10**9), min_size=1), st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_another_share_moves_no_image_between_the_others(
    images: list[int], val: float, more: float
) -> None:
    small, large = Shares(val, 0.1, seed=3), Shares(val + more * 0.5, 0.1, seed=3)
    for image in images:
        before, after = small.side_of(image), large.side_of(image)
        assert before == after or (before, after) == ("train", "val")


def test_shares_are_kept_and_seeds_differ() -> None:
    images = [f"{number:06d}.jpg" for number in range(20_000)]
    counts = dict.fromkeys(("train", "val", "test"), 0)
    for image in images:
        counts[SHARES.side_of(image)] += 1
    assert counts["val"] == pytest.approx(6000, abs=250)
    assert counts["test"] == pytest.approx(4000, abs=250)
    other = Shares(val=0.3, test=0.2, seed=1)
    assert any(SHARES.side_of(image) != other.side_of(image) for image in images)


def test_the_files_can_be_built(scenes: Scenes, tmp_path: Path) -> None:
    annotations = scenes.data / "annotations" / "captions_train2017.json"
    out = tmp_path / "dealt"
    done = run_shards("split", "--annotations", annotations, "--out", out, "--val", 0.3, "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    whole = json.loads(annotations.read_text())
    files = {side: json.loads((out / f"{side}.json").read_text()) for side in counts}
    assert sorted(files) == ["test", "train", "val"]
    for part in ("images", "annotations"):
        entries = [entry for value in files.values() for entry in value[part]]
        assert sorted(e["id"] for e in entries) == sorted(e["id"] for e in whole[part])
    for side, value in files.items():
        assert value["info"] == whole["info"]
        ids = {image["id"] for image in value["images"]}
        assert {entry["image_id"] for entry in value["annotations"]} == ids
        assert counts[side] == {"images": len(ids), "captions": 5 * len(ids)}
    done = run_shards(
        "build", "--images", scenes.data / "train2017", "--annotations", out / "val.json",
        "--tokenizer", scenes.tokenizer, "--out", tmp_path / "val", "--workers", 1, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images_packed"] == counts["val"]["images"]


def test_karpathys_files_name_their_new_split(tmp_path: Path) -> None:
    images = [
        {"filename": f"{n}.jpg", "imgid": n, "split": "train", "sentences": [{"raw": "a"}]}
        for n in range(40)
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"dataset": "flickr8k", "images": images}))
    for side, part in deal(path, "image", SHARES).items():
        value = json.loads(part.data)
        assert value["dataset"] == "flickr8k"
        assert {image["split"] for image in value["images"]} == {side}
        assert all(SHARES.side_of(image["imgid"]) == side for image in value["images"])


def test_nothing_is_replaced_without_being_asked(tmp_path: Path) -> None:
    path, out = tmp_path / "captions.tsv", tmp_path / "out"
    rows = [f"{number}.jpg\ta circle" for number in range(50)]
    path.write_text("\n".join(["image\tcaption", *rows]))  # no line end after the last row
    command = ("split", "--annotations", path, "--out", out)
    done = run_shards(*command)
    assert done.returncode == 0, done.stderr
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert sorted(before) == ["test.tsv", "train.tsv", "val.tsv"]
    lines = [line for data in before.values() for line in data.decode().splitlines()[1:]]
    assert sorted(lines) == sorted(rows)
    assert run_shards(*command).returncode == 0  # the same contents
    path.write_text("\n".join(["image\tcaption", *rows, *(f"new{n}.jpg\ta" for n in range(20))]))
    done = run_shards(*command)
    assert done.returncode == 2
    assert "exists with other contents" in done.stderr
    assert "--overwrite" in done.stderr
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert run_shards(*command, "--overwrite").returncode == 0
    assert (out / "train.tsv").read_bytes() != before["train.tsv"]
    done = run_shards(*command, "--test", 0, "--overwrite")
    assert done.returncode == 2
    assert "test.tsv: is left from another split" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--val", 0.5, "--test", 0.5), "leave no image for train"),
        (("--val", 0, "--test", 0), "nothing to divide"),
        (("--val", 2), "--val: must be a share from 0 to 1"),
        (("--image_column", "file"), "no column 'file'"),
        (("--val", 0.0001), "no image is in the split 'val'"),
    ],
)
def test_what_cannot_be_dealt_is_one_line(tmp_path: Path, options: tuple, message: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("image,caption\n" + "".join(f"{number}.jpg,a\n" for number in range(50)))
    done = run_shards("split", "--annotations", path, "--out", tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("image,caption\n" + "".join(f"{number}.jpg,a\n" for number in range(50)))
    before = path.read_bytes()
    done = run_shards("split", "--annotations", path, "--out", tmp_path, "--overwrite")
    assert done.returncode == 2
    assert "is the file to be divided" in done.stderr
    assert path.read_bytes() == before
