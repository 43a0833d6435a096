"""The commands as a user meets them: help, repeated options, errors in plain sentences."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.repository import ROOT
from support.shards import Scenes, build_command, coco_folder, digests, run_shards, save_annotations

from shards.format.index import read_index
from shards.messages import counted, system_error
from shards.sources.read import Source, read_source
from shards.sources.record import relative_to

COMMANDS = ("sample", "split", "tokenizer", "build", "finalize", "index", "verify", "show")


def refusal(*arguments: object) -> str:
    """The one line with which a command is refused."""
    done = run_shards(*arguments)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "Errno" not in line
    return line


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_is_quick_and_shows_one_style(command: tuple[str, ...]) -> None:
    started = time.process_time()
    before = os.times().children_user
    done = run_shards(*command, "--help")
    assert done.returncode == 0, done.stderr
    assert os.times().children_user - before + time.process_time() - started < 1
    words = done.stdout.replace("[", " ").replace("]", " ").split()
    assert not [word for word in words if word.startswith("--") and "-" in word[2:]]
    assert "picture" not in done.stdout
    assert "None" not in done.stdout


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom shards.cli import main\n"
        "try:\n    main(['build', '--help'])\n"
        "except SystemExit:\n    print([m for m in ('numpy', 'tokenizers', 'PIL', 'cv2', 'torch')"
        " if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr.strip() == "[]"


# -------------------------------------------------------------------------------- repeated options


def write_csv(path: Path, rows: list[tuple[str, ...]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def captions_of(source: Source) -> dict[str, tuple[str, ...]]:
    return {record.file_name: record.captions for record in read_source(source)}


def test_all_caption_columns_count(scenes: Scenes, tmp_path: Path) -> None:
    names = sorted(path.name for path in (scenes.data / "train2017").iterdir())[:3]
    table = write_csv(tmp_path / "t.csv", [
        ("image", "en", "alt"), (names[0], "a red circle", "a circle"), (names[1], "a ring", " "),
        (names[2], "", "a cross"), (names[0], "a ring", "a blue ring"),
    ])  # fmt: skip
    wanted = {
        names[0]: ("a red circle", "a circle", "a ring", "a blue ring"),
        names[1]: ("a ring",),
        names[2]: ("a cross",),
    }
    assert captions_of(Source((table,), caption_columns=("en", "alt"))) == wanted
    done = run_shards(
        "build", "--images", scenes.data / "train2017", "--annotations", table, "--tokenizer",
        scenes.tokenizer, "--out", tmp_path / "out", "--workers", 1, "--json", "--max_unk", 1,
        "--caption-column", "en", "--caption-column", "alt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["captions"], report["rejected"]) == (6, {})


def test_all_caption_keys_of_json_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"image": "a.jpg", "one": ["x", ""], "two": "y"}\n')
    columns = ("one", "two")
    assert captions_of(Source((path,), caption_columns=columns)) == {"a.jpg": ("x", "y")}
    assert captions_of(Source((path,), caption_columns=("one",))) == {"a.jpg": ("x", "")}
    sparse = tmp_path / "sparse.jsonl"
    sparse.write_text(
        '{"image": "a.jpg", "one": "x"}\n{"image": "b.jpg", "one": null, "two": "y"}\n'
    )
    wanted = {"a.jpg": ("x",), "b.jpg": ("y",)}
    assert captions_of(Source((sparse,), caption_columns=columns)) == wanted
    with pytest.raises(ValueError, match="--caption_column one is given twice"):
        read_source(Source((path,), caption_columns=("one", "one")))


def test_several_annotation_files_are_one_set(scenes: Scenes, tmp_path: Path) -> None:
    rows = [("image", "caption"), ("a.jpg", "a circle")]
    first = write_csv(tmp_path / "1.csv", rows)
    second = write_csv(tmp_path / "2.csv", [rows[0], ("b.jpg", "a ring")])
    assert captions_of(Source((first, second))) == {"a.jpg": ("a circle",), "b.jpg": ("a ring",)}
    done = run_shards("tokenizer", "--annotations", first, "--annotations", second,
                      "--out", tmp_path / "t.json", "--min_count", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "from 2 captions" in done.stdout
    line = refusal(
        "build", "--images", tmp_path, "--annotations", first, "--annotations", first,
        "--tokenizer", scenes.tokenizer, "--out", tmp_path / "out", "--max_unk", 1,
    )  # fmt: skip
    assert "image ids occur more than once: a" in line


def test_an_option_that_cannot_repeat_is_refused(scenes: Scenes, tmp_path: Path) -> None:
    command = build_command(scenes.data, scenes, tmp_path / "out")
    assert "--out: is given twice" in refusal(*command, "--out", tmp_path / "other")
    assert "--min_count: is given twice" in refusal(
        "tokenizer", "--annotations", "x", "--out", "y", "--min-count", 1, "--min_count", 2
    )


# -------------------------------------------------------------------------------------- UNK tokens


def test_the_tokenizer_command_warns_of_many_unk(scenes: Scenes, tmp_path: Path) -> None:
    annotations = scenes.data / "annotations" / "captions_train2017.json"
    command = ("tokenizer", "--annotations", annotations, "--out", tmp_path / "t.json")
    done = run_shards(*command, "--min_count", 100)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: ")
    assert "more than --max_unk 5.0%" in line
    assert "--min_count below 100" in line
    assert run_shards(*command, "--min_count", 100, "--max_unk", 1).stderr == ""
    assert run_shards(*command, "--min_count", 1).stderr == ""


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_only_a_training_set_may_get_a_new_tokenizer(
    scenes: Scenes, tmp_path: Path, name: str
) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    for entry in annotations["annotations"]:
        entry["caption"] = "ein Zebra"
    save_annotations(folder, annotations)
    line = refusal(*build_command(folder, scenes, tmp_path / "out", "--name", name))
    keep, make = line.find("keep the tokenizer of the training set"), line.find("make a tokenizer")
    assert keep > 0
    assert "raise --max_unk" in line
    if name == "train":
        assert 0 < make < keep
    else:
        assert keep < make or make < 0
        assert "If it is a training set, make" in line
    assert "and build with it" in line  # no folder was made yet
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- finalize


def test_finalize_finds_the_tokenizer_of_the_jobs(scenes: Scenes, tmp_path: Path) -> None:
    command = build_command(scenes.data, scenes, tmp_path / "out", "--resize_short", 48)
    for member in range(2):
        done = run_shards(*command, "--job_index", member, "--job_count", 2)
        assert done.returncode == 0, done.stderr
        assert f"run `python -m shards finalize {tmp_path / 'out'}`" in done.stdout
    done = run_shards("finalize", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "out") == digests(scenes.train)
    (tmp_path / "out" / "tokenizer.json").unlink()
    assert "give the tokenizer with --tokenizer" in refusal("finalize", tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    assert "not the tokenizer that" in refusal("finalize", tmp_path / "out")
    done = run_shards("finalize", tmp_path / "out", "--tokenizer", scenes.tokenizer)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "out") == digests(scenes.train)


def test_a_refused_build_does_not_touch_the_tokenizer(scenes: Scenes, tmp_path: Path) -> None:
    out = tmp_path / "train"
    shutil.copytree(scenes.train, out)
    other = tmp_path / "other.json"
    annotations = scenes.data / "annotations" / "captions_val2017.json"
    run_shards("tokenizer", "--annotations", annotations, "--out", other, "--min_count", 1)
    line = refusal(*build_command(scenes.data, scenes, out, "--tokenizer", other, "--max_unk", 1))
    assert "another source, tokenizer or options" in line
    assert digests(out) == digests(scenes.train)


# ------------------------------------------------------------------------------------- error lines


def test_wrong_paths_are_told_in_plain_sentences(scenes: Scenes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    annotations = scenes.data / "annotations" / "captions_train2017.json"

    def build(*options: object) -> str:
        return refusal(*build_command(scenes.data, scenes, tmp_path / "out", *options))

    assert f"{tmp_path}: is a folder; --annotations needs a file" in build(
        "--annotations", tmp_path
    )
    assert f"--images {file}: is a file, not a folder" in build("--images", file)
    assert f"--images {file}x: no such folder of images" in build("--images", f"{file}x")
    assert f"--out {file}: is a file, where a folder is needed" in build("--out", file)
    assert f"{file}/out: is not a folder" in build("--out", file / "out")
    assert "give the image folder with --images" in refusal(
        "build", "--annotations", annotations, "--tokenizer", scenes.tokenizer, "--out", tmp_path
    )
    assert f"--out {tmp_path}: is a folder; give a file name" in refusal(
        "tokenizer", "--annotations", annotations, "--out", tmp_path
    )
    assert f"{file}: is a file, not a folder" in refusal(
        "index", file, "--tokenizer", scenes.tokenizer
    )
    assert f"{file}/train2017: is not a folder" in refusal("sample", "--out", file, "--images", 2)
    assert "--images must be 2 or more" in refusal("sample", "--out", tmp_path, "--images", 1)


def test_show_names_a_damaged_sample(scenes: Scenes, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scenes.val, tmp_path / "val"))
    index = read_index(folder)
    with open(folder / "val-000000.tar", "r+b") as tar:
        tar.seek(int(index.meta_offset[0]))
        tar.write(b"no JSON")
    done = run_shards("show", folder, "--limit", 2)
    assert done.returncode == 2
    assert f"val-000000.tar: sample {index.key(0)} is damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_path_is_refused(scenes: Scenes) -> None:
    done = run_shards("show", "")
    assert done.returncode == 2
    assert "must not be empty" in done.stderr


def test_output_that_is_read_in_part_is_no_error(scenes: Scenes) -> None:
    command = f"{sys.executable} -m shards show {scenes.val} --limit 7 | true"
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", ["show", "verify", "finalize"])
def test_a_folder_without_a_data_set_is_named(tmp_path: Path, command: str) -> None:
    line = refusal(command, tmp_path / "nowhere")
    assert line == f"shards {command}: {tmp_path / 'nowhere'}: no such shard folder"
    assert f"{tmp_path}: " in refusal(command, tmp_path)
    assert "tokenizer" not in refusal(command, tmp_path)


def test_show_prints_counts_in_words(scenes: Scenes, tmp_path: Path) -> None:
    done = run_shards("show", scenes.val, "--limit", 1)
    assert done.returncode == 0, done.stderr
    assert "val, 7 images with 35 captions in 1 shard, vocabulary of" in done.stdout
    page = tmp_path / "page.html"
    done = run_shards("show", scenes.val, "--html", page)
    assert done.returncode == 0, done.stderr
    assert page.read_text().count("<article>") == 3
    assert counted(1, "shard") == "1 shard"
    assert counted(0, "shard") == "0 shards"
    assert counted(1200, "shard") == "1,200 shards"


def test_an_error_of_a_library_without_a_number_is_a_sentence_too() -> None:
    assert system_error(FileNotFoundError("bucket/key")) == "bucket/key: no such file or folder"
    assert system_error(IsADirectoryError(21, "x", "y")) == "y: is a folder, where a file is needed"
    assert system_error(OSError(28, "x", "y")) == "y: No space left on device"


# ------------------------------------------------------------------------ absolute paths of images


def test_absolute_paths_inside_the_image_folder_are_names(scenes: Scenes, tmp_path: Path) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    for image in annotations["images"]:
        image["file_name"] = str(folder / "train2017" / image["file_name"])
    save_annotations(folder, annotations)
    out = tmp_path / "out"
    done = run_shards(*build_command(folder, scenes, out, "--resize_short", 48))
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests(scenes.train)  # as if the names had been relative
    line = refusal(*build_command(folder, scenes, out, "--images", scenes.data / "val2017"))
    assert f"not inside --images {scenes.data / 'val2017'}" in line
    assert "give the folder that holds these files with --images" in line


def test_one_absolute_path_elsewhere_is_rejected_by_name(scenes: Scenes, tmp_path: Path) -> None:
    folder, annotations = coco_folder(scenes, tmp_path / "data")
    annotations["images"][0]["file_name"] = "/etc/passwd"
    save_annotations(folder, annotations)
    out = tmp_path / "out"
    done = run_shards(*build_command(folder, scenes, out, "--max_rejected", 0.1))
    assert done.returncode == 0, done.stderr
    (line,) = (out / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["detail"] == "is an absolute path outside the image folder"


def test_absolute_names_in_a_table_have_the_keys_of_relative_ones(tmp_path: Path) -> None:
    rows = [("image", "caption"), (f"{tmp_path}/a.jpg", "x"), ("a.jpg", "y"), ("b.jpg", "z")]
    table = write_csv(tmp_path / "t.csv", rows)
    records = read_source(Source((table,), images_dir=tmp_path))
    assert [(r.key, r.file_name, r.captions) for r in records] == [
        ("a", "a.jpg", ("x", "y")), ("b", "b.jpg", ("z",)),
    ]  # fmt: skip
    assert relative_to(Path("/x"))("/xy/a.jpg") == "/xy/a.jpg"
    assert relative_to(Path("/x/"))("/x//a.jpg") == "a.jpg"
