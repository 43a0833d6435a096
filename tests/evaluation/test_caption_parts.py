"""Part files: what a kill or a power cut leaves is never taken for a caption, nothing is lost."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.caption_formats import ImageCaptions, json_line
from pipeline.evaluation.caption_parts import PartFiles
from pipeline.evaluation.image_files import ImageList
from pipeline.generation.blocks import ScoredCaption
from pipeline.runtime.world import World

PATHS = [f"photos/{number}.jpg" for number in range(9)]
SEVERAL = (ScoredCaption("first", -1.5), ScoredCaption("second", -2.0))
ROWS = [
    ImageCaptions(path, f"caption of {path} \u2026", SEVERAL if number % 3 else ())
    for number, path in enumerate(PATHS)
]


def opened(out: Path, rank: int = 0, images: list[str] = PATHS) -> PartFiles:
    parts = PartFiles(out, {"model": "a"}, ImageList(images), keep=3)
    parts.open(World(rank=rank, world_size=2), lambda: None)
    return parts


def written_by_two(out: Path) -> list[Path]:
    """Part files with all rows but the last two, the ranks taking turns."""
    ranks = [opened(out, rank) for rank in range(2)]
    for number, row in enumerate(ROWS[:7]):
        ranks[number % 2].write([row])
    return sorted(out.parent.glob("*.part"))


@given(st.integers(0, 300), st.sampled_from([b"", b"\0\0\0\n", b'{"image": 3}\n', b"null\n"]))
def test_whatever_is_cut_off_is_captioned_again(
    tmp_path_factory: pytest.TempPathFactory, cut: int, rubbish: bytes
) -> None:
    out = tmp_path_factory.mktemp("parts") / "captions.jsonl"
    first, _ = written_by_two(out)
    with open(first, "rb+") as file:
        file.truncate(max(0, file.seek(0, 2) - cut))
    if rubbish and b"\n" in first.read_bytes():  # a cut header is refused if lines follow it
        with open(first, "ab") as file:
            file.write(b"\n" + rubbish)
    parts = opened(out)
    done = parts.captioned(PATHS)
    assert done[1:7:2] == [True] * 3  # the other rank's
    assert done[7:] == [False] * 2
    parts.write([row for row, is_done in zip(ROWS, done, strict=True) if not is_done])
    parts.finish(num_unreadable=0)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [json.loads(json_line(*row)) for row in ROWS]
    assert rows[1]["captions"][1] == {"caption": "second", "score": -2.0}
    assert parts.first(9) == [(row.path, row.caption) for row in ROWS[:3]]


def test_two_runs_cannot_write_one_output(tmp_path: Path) -> None:
    running = opened(tmp_path / "captions.csv")
    with pytest.raises(ValueError, match="another run"):
        opened(tmp_path / "captions.csv")
    del running
    opened(tmp_path / "captions.csv")


def test_an_output_that_lacks_captions_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "captions.json"
    parts = opened(out)
    parts.write(ROWS[:7])
    with pytest.raises(RuntimeError, match="7 captions and 1 unreadable image came"):
        parts.finish(num_unreadable=1)
    assert list(tmp_path.glob("*.part"))
    assert not out.exists()


def test_a_finished_output_belongs_to_its_images(tmp_path: Path) -> None:
    out = tmp_path / "captions.csv"
    parts = opened(out)
    parts.write(ROWS)
    parts.finish(0)
    again = PartFiles(out, {"model": "a"}, ImageList(PATHS), keep=0)
    assert again.earlier
    assert again.earlier[1] == 0
    for fingerprint, images in (({"model": "b"}, PATHS), ({"model": "a"}, PATHS[1:])):
        with pytest.raises(ValueError, match="exists already"):
            PartFiles(out, fingerprint, ImageList(images), keep=0)


def test_two_images_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a/1\.jpg and b/1\.jpg have the same number, 1"):
        ImageList(["a/1.jpg", "a/2.jpg", "b/1.jpg"]).check_unique(lambda p: Path(p).stem, "number")
    with pytest.raises(ValueError, match=r"a/1\.jpg: is given twice"):
        ImageList(["a/1.jpg", "a/1.jpg"]).check_unique(lambda p: p, "path")
