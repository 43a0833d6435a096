"""Damaged and odd tars: every sample is read exactly, named, or its tar refused by name."""

import gzip
import io
import os
import random
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.shards import Scenes

import shards.index_tars
from pipeline.data.batch import BadSampleError
from pipeline.data.reader import ShardFolder
from shards.finalize import close_data_set
from shards.format.manifest import read_manifest
from shards.format.sidecar import Sidecar
from shards.index_tars import index_tars

BLOCK = tarfile.BLOCKSIZE
NUM_SAMPLES = 6
CAPTION = b"a red circle"

FEW_OR_MANY = pytest.mark.parametrize("cases", [200, pytest.param(5000, marks=pytest.mark.slow)])
CUTS = pytest.mark.parametrize("cases", [50, pytest.param(1000, marks=pytest.mark.slow)])

# ------------------------------------------------------------- damage after a data set was finished


@pytest.fixture(params=["our own", "made by others"])
def finished(request: pytest.FixtureRequest, scenes: Scenes, tmp_path: Path) -> Path:
    """A data set of several tars, to be spoilt."""
    folder = tmp_path / "finished"
    if request.param == "our own":
        shutil.copytree(scenes.train, folder)
        return folder
    folder.mkdir()
    for name in ("a.tar", "b.tar"):
        write_tar(folder / name)
    close_data_set(folder, index_tars(folder, scenes.tokenizer), scenes.tokenizer, 0.0, 1.0)
    return folder


def spans(opened: ShardFolder, sample: int) -> list[slice]:
    """Where the two files of a sample lie in their tar."""
    index = opened.index
    return [
        slice(int(offset[sample]), int(offset[sample]) + int(size[sample]))
        for offset, size in (
            (index.image_offset, index.image_size),
            (index.meta_offset, index.meta_size),
        )
    ]


def read_or_error(shards_now: ShardFolder, sample: int) -> object:
    try:
        return shards_now.read(sample)
    except BadSampleError as error:
        return error


def check_reading(opened: ShardFolder, damage: Callable[[Path], object]) -> int:
    """Damage the first tar of an open data set: the samples of which a byte changed are named, and
    every other is read exactly.

    Returns:
        How many were named.
    """
    tar = opened.folder / opened.manifest.shards[0].file
    whole = tar.read_bytes()
    expected = [opened.read(sample) for sample in range(len(opened))]
    damage(tar)
    now = tar.read_bytes()
    of_the_tar = int(opened.index.shard_starts[1])
    named = 0
    for sample in range(len(opened)):
        found = read_or_error(opened, sample)
        if sample < of_the_tar and any(now[s] != whole[s] for s in spans(opened, sample)):
            named += 1
            assert isinstance(found, BadSampleError)
            assert str(tar) in str(found)
            assert opened.index.key(sample) in str(found)
        else:
            assert found == expected[sample]
    tar.write_bytes(whole)
    return named


def test_a_cut_at_any_block_is_named_sample_by_sample(finished: Path) -> None:
    opened = ShardFolder(finished)
    size = opened.manifest.shards[0].num_bytes
    before = len(opened)
    for length in range(0, size, BLOCK):
        named = check_reading(opened, lambda path, length=length: os.truncate(path, length))
        assert named <= before  # the more is left, the less is damaged
        before = named
    assert before == 0  # the last blocks hold no sample


def test_a_tar_of_another_size_is_refused_when_it_is_opened(finished: Path) -> None:
    tar = finished / read_manifest(finished).shards[0].file
    os.truncate(tar, tar.stat().st_size - 1)
    with pytest.raises(ValueError, match=tar.name):
        ShardFolder(finished)


@FEW_OR_MANY
def test_flips_cuts_and_zeroed_blocks_in_a_finished_data_set(finished: Path, cases: int) -> None:
    rng = random.Random(0)
    opened = ShardFolder(finished)
    size = opened.manifest.shards[0].num_bytes
    num_named = 0

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

    def cut(path: Path) -> None:
        os.truncate(path, rng.randrange(size))

    def zero(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(rng.randrange(size // BLOCK) * BLOCK)
            file.write(bytes(BLOCK))

    for _ in range(cases // 4):
        num_named += sum(check_reading(opened, damage) for damage in (flip, cut, zero))
    assert num_named > 0


# -------------------------------------------------------------------- tars that are to be indexed


def image(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16), (40 * number, 90, 30)).save(data, "JPEG")
    return data.getvalue()


def write_tar(path: Path, form: int = tarfile.USTAR_FORMAT, prefix: str = "") -> dict[str, bytes]:
    """A tar of six samples. Returns name -> contents of every member."""
    members = {}
    with tarfile.open(path, "w", format=form) as tar:
        for number in range(NUM_SAMPLES):
            for name, data in ((f"{prefix}s{number}.jpg", image(number)),
                               (f"{prefix}s{number}.txt", CAPTION)):  # fmt: skip
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                members[name] = data
    return members


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for one tar. Images are checked in this process: thousands of forks are slow."""
    monkeypatch.setattr(shards.index_tars, "bounded_in_own_process", lambda decode: decode())
    folder = tmp_path / "foreign"
    folder.mkdir()
    return folder


def outcome(folder: Path, scenes: Scenes) -> tuple[int, int] | str:
    """How many samples are indexed and left out, or why the folder was refused."""
    found = index_or_refusal(folder, scenes)
    if isinstance(found, str):
        return found
    return sum(sidecar.num_samples for sidecar in found), num_left_out(found)


def num_left_out(sidecars: list[Sidecar]) -> int:
    return sum(entry["caption"] is None for s in sidecars for entry in s.quarantine)


def index_or_refusal(folder: Path, scenes: Scenes) -> list[Sidecar] | str:
    """The sidecars of a folder, or why it was refused; nothing else is written."""
    before = sorted(folder.parent.rglob("*"))
    refusal = ""
    sidecars = []
    try:
        sidecars = list(index_tars(folder, scenes.tokenizer))
    except (ValueError, OSError) as error:
        refusal = str(error)
    assert sorted(folder.parent.rglob("*")) == before
    if refusal:
        assert "t.tar" in refusal
    return refusal or sidecars


def test_a_whole_tar_is_indexed_whole(foreign: Path, scenes: Scenes) -> None:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        write_tar(foreign / "t.tar", form, prefix="a" * 90 + "/" + "b" * 90 + "/")
        assert outcome(foreign, scenes) == (NUM_SAMPLES, 0)


@CUTS
def test_a_cut_tar_is_refused(foreign: Path, scenes: Scenes, cases: int) -> None:
    write_tar(foreign / "t.tar")
    data = (foreign / "t.tar").read_bytes()
    end = len(data.rstrip(b"\0"))
    last_data = -(-end // BLOCK) * BLOCK  # from here on there is nothing but the mark of the end
    rng = random.Random(1)
    for length in [
        *range(0, last_data + 1, BLOCK),
        *(rng.randrange(last_data) for _ in range(cases)),
    ]:
        (foreign / "t.tar").write_bytes(data[:length])
        assert isinstance(outcome(foreign, scenes), str), length


@FEW_OR_MANY
def test_a_flipped_header_loses_no_sample(foreign: Path, scenes: Scenes, cases: int) -> None:
    write_tar(foreign / "t.tar")
    data = (foreign / "t.tar").read_bytes()
    with tarfile.open(foreign / "t.tar") as tar:
        headers = [member.offset for member in tar]
    rng, refused = random.Random(2), 0
    for _ in range(cases):
        spoilt = bytearray(data)
        spoilt[rng.choice(headers) + rng.randrange(BLOCK)] ^= 1 << rng.randrange(8)
        (foreign / "t.tar").write_bytes(spoilt)
        found = outcome(foreign, scenes)
        refused += isinstance(found, str)
        assert isinstance(found, str) or sum(found) == NUM_SAMPLES
    assert refused > 0.9 * cases  # the sum over a header's bytes notices


@FEW_OR_MANY
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_flip_in_a_long_name_loses_no_image(
    foreign: Path, scenes: Scenes, form: int, cases: int
) -> None:
    members = write_tar(foreign / "t.tar", form, prefix="n" * 120)
    images = {zlib.crc32(data) for name, data in members.items() if name.endswith(".jpg")}
    data = (foreign / "t.tar").read_bytes()
    with tarfile.open(foreign / "t.tar") as tar:
        headers = [(member.offset, member.offset_data) for member in tar]
    rng = random.Random(5)
    for _ in range(cases):
        spoilt = bytearray(data)
        spoilt[rng.randrange(*rng.choice(headers))] ^= 1 << rng.randrange(8)
        (foreign / "t.tar").write_bytes(spoilt)
        found = index_or_refusal(foreign, scenes)
        if not isinstance(found, str):
            indexed = [member.image.crc32 for sidecar in found for member in sidecar.members]
            assert set(indexed) <= images
            assert len(set(indexed)) + num_left_out(found) >= NUM_SAMPLES


@FEW_OR_MANY
def test_a_flipped_payload_loses_no_sample(foreign: Path, scenes: Scenes, cases: int) -> None:
    write_tar(foreign / "t.tar")
    data = (foreign / "t.tar").read_bytes()
    with tarfile.open(foreign / "t.tar") as tar:
        spans = [(member.offset_data, member.size) for member in tar]
    rng = random.Random(3)
    for _ in range(cases):
        spoilt = bytearray(data)
        offset, size = rng.choice(spans)
        spoilt[offset + rng.randrange(size)] ^= 1 << rng.randrange(8)
        (foreign / "t.tar").write_bytes(spoilt)
        found = outcome(foreign, scenes)
        assert isinstance(found, str) or sum(found) == NUM_SAMPLES


def header(name: str, size: bytes = b"%011o" % 0, kind: bytes = b"0", link: str = "") -> bytes:
    """A ustar header with a right checksum and whatever else."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT)[:BLOCK])
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


# What is put before or behind the six samples -> what may come of it.
ODD: dict[str, Callable[[bytes], bytes]] = {
    "no mark of the end": lambda data: data.rstrip(b"\0").ljust(BLOCK, b"\0"),
    "a second tar behind": lambda data: data + data,
    "a negative size": lambda data: header("x.txt", b"\xff" * 12) + data,
    "a lying size": lambda data: header("x.txt", b"%011o" % 10**9) + data,
    "a size that is no number": lambda data: header("x.txt", b"0000x000000") + data,
    "gzip under the name of a tar": gzip.compress,
    "a sparse file": lambda data: header("x.txt", kind=b"S") + data,
    "random bytes": lambda data: random.Random(4).randbytes(len(data)),
    "an empty file": lambda data: b"",
}
NO_FILE: dict[str, tuple[bytes, int]] = {  # -> what is put before, how many samples are left out
    "a symbolic link": (header("l.jpg", kind=b"2", link="/etc/passwd"), 1),
    "a symbolic link of no concern": (header("l.npy", kind=b"2", link="/etc/passwd"), 0),
    "a hard link to nothing": (header("l.jpg", kind=b"1", link="nothing"), 1),
    "a hard link to what comes later": (header("l.jpg", kind=b"1", link="s0.jpg"), 1),
    "a device": (header("d.jpg", kind=b"3"), 1),
    "a pipe": (header("d.txt", kind=b"6"), 1),
    "a folder": (header("d.jpg", kind=b"5"), 0),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_tar_is_refused_by_name(foreign: Path, scenes: Scenes, name: str) -> None:
    write_tar(foreign / "t.tar")
    (foreign / "t.tar").write_bytes(ODD[name]((foreign / "t.tar").read_bytes()))
    assert isinstance(outcome(foreign, scenes), str)


@pytest.mark.parametrize("name", NO_FILE)
def test_a_sample_that_is_no_file_is_left_out(foreign: Path, scenes: Scenes, name: str) -> None:
    write_tar(foreign / "t.tar")
    before, left_out = NO_FILE[name]
    (foreign / "t.tar").write_bytes(before + (foreign / "t.tar").read_bytes())
    assert outcome(foreign, scenes) == (NUM_SAMPLES, left_out)


def test_a_hard_link_is_its_file(foreign: Path, scenes: Scenes) -> None:
    members = write_tar(foreign / "t.tar")
    with tarfile.open(foreign / "t.tar", "a") as tar:
        for part in ("jpg", "txt"):
            link = tarfile.TarInfo(f"again.{part}")
            link.type, link.linkname = tarfile.LNKTYPE, f"s3.{part}"
            tar.addfile(link)
    found = index_or_refusal(foreign, scenes)
    assert not isinstance(found, str)
    assert len(found[0].members) == NUM_SAMPLES + 1
    assert found[0].members[-1].image.crc32 == zlib.crc32(members["s3.jpg"])


@pytest.mark.parametrize("more", [-1200, -600, -100, -1, 1, 100, 600, 1200])
def test_a_size_that_lies_by_little_loses_no_sample(
    foreign: Path, scenes: Scenes, more: int
) -> None:
    members = write_tar(foreign / "t.tar")
    size = max(len(members["s0.jpg"]) + more, 0)
    data = (foreign / "t.tar").read_bytes()
    (foreign / "t.tar").write_bytes(header("s0.jpg", b"%011o" % size) + data[BLOCK:])
    found = outcome(foreign, scenes)
    assert isinstance(found, str) or sum(found) == NUM_SAMPLES


@pytest.mark.parametrize("prefix", ["../", "/", "../../../../tmp/"])
def test_names_that_lead_outside_are_only_names(foreign: Path, scenes: Scenes, prefix: str) -> None:
    write_tar(foreign / "t.tar", prefix=prefix)
    assert outcome(foreign, scenes) == (NUM_SAMPLES, 0)


def test_zeroed_blocks_lose_no_sample(foreign: Path, scenes: Scenes) -> None:
    write_tar(foreign / "t.tar")
    data = (foreign / "t.tar").read_bytes()
    for offset in range(0, len(data.rstrip(b"\0")), BLOCK):
        (foreign / "t.tar").write_bytes(
            data[:offset] + bytes(BLOCK) + data[offset + BLOCK :]
        )  # fmt: skip
        found = outcome(foreign, scenes)
        assert isinstance(found, str) or sum(found) == NUM_SAMPLES, offset
