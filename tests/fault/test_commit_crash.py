"""Commits cut short at every place, and damaged at many: one that loads always remains."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_record
from support.repository import ONE_THREAD, ROOT

from pipeline.checkpoint import commit as checkpoint
from pipeline.checkpoint.state import TrainState
from pipeline.generation.trained import load_trained

FILES = {
    "config.yaml", "files.json", "model.safetensors", "optimizer.pt", "state.json",
    "tokenizer.json",
}  # fmt: skip
TRUNCATIONS, FLIPS = 64, 256  # of each file


def cut(folder: Path, *arguments: object) -> dict[str, int]:
    """Run the worker, which checks what each cut left, and give its counts."""
    worker = Path(__file__).with_name("commit_crash_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(folder), *map(str, arguments)], cwd=ROOT,
        env={**ONE_THREAD, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("mode", ["exit", "fresh"])
def test_a_process_that_dies_at_any_operation_leaves_whole_commits(
    tmp_path: Path, mode: str
) -> None:
    counts = cut(tmp_path, mode)
    assert counts["exit"] > (25 if mode == "fresh" else 80)  # a commit, or three and a deletion
    assert set(counts) == {"exit"}


# By default each operation fails in one of the three ways; with -m slow, in each of them.
@pytest.mark.parametrize(
    ("first", "stride"),
    [(None, 3), pytest.param(0, 1, marks=pytest.mark.slow)],
    ids=["third", "all"],
)
@pytest.mark.parametrize(("number", "mode"), [(0, "ENOSPC"), (1, "EIO"), (2, "EROFS")])
def test_a_disk_that_fails_at_any_operation_is_named_and_leaves_whole_commits(
    tmp_path: Path, number: int, mode: str, first: int | None, stride: int
) -> None:
    counts = cut(tmp_path, mode, number if first is None else first, stride)
    assert counts["error"] > 80 // stride
    # Deleting what is no longer needed may fail: it goes another time.
    assert counts.get("went on", 0) <= 12 // stride


@pytest.mark.parametrize("mode", ["kill", "short"])
def test_a_write_cut_in_the_middle_leaves_whole_commits(tmp_path: Path, mode: str) -> None:
    counts = cut(tmp_path, mode)
    assert set(counts) == FILES
    assert min(counts.values()) >= 4


def damages(whole: bytes, rng: random.Random) -> list[bytes]:
    """The bytes of a file, truncated and with single bits flipped, ends and beginnings too."""
    places = {0, 1, len(whole) // 2, len(whole) - 1}
    places |= {rng.randrange(len(whole)) for _ in range(TRUNCATIONS - len(places))}
    bits = {0, 8 * len(whole) - 1} | {rng.randrange(8 * len(whole)) for _ in range(FLIPS - 2)}
    found = [whole[:place] for place in places]
    for bit in bits:
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        found.append(bytes(spoilt))
    return found


def test_no_truncation_and_no_flipped_bit_is_loaded_in_silence(tmp_path: Path) -> None:
    tokenizer = tmp_path / "words"
    tokenizer.write_text(json.dumps({"model": {"vocab": {"a": 0, "dog": 1}}}))
    weight = torch.arange(256.0)
    path = checkpoint.commit(
        tmp_path / "checkpoints", make_record(tokenizer, "seed: 0\n" * 20),
        TrainState(step=7, updates=7), {"weight": weight},
        {"optimizer": {"state": {0: {"exp_avg": weight}}}},
    )  # fmt: skip
    assert {file.name for file in path.iterdir()} == FILES
    rng, num_cases = random.Random(0), 0
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for damaged in damages(whole, rng):
            file.write_bytes(damaged)
            for load in (checkpoint.check_checkpoint, load_trained):
                with pytest.raises(ValueError, match="step-00000007: damaged checkpoint"):
                    load(path)
            num_cases += 1
        file.write_bytes(whole)
        checkpoint.check_checkpoint(path)
    assert num_cases > len(FILES) * 250  # small files have fewer places than were drawn


@pytest.mark.parametrize(
    "garbage",
    [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a": 1e999}', b"9" * 10_000],
    ids=["empty", "null", "list", "dict", "not-utf8", "deep", "infinite", "long"],
)
def test_garbage_in_the_place_of_files_json_is_damage(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "step-00000001"
    path.mkdir()
    (path / "files.json").write_bytes(garbage)
    with pytest.raises(ValueError, match=r"step-00000001: damaged checkpoint \(files.json"):
        checkpoint.check_checkpoint(path)


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001"
    (path / "files.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"damaged checkpoint \(files.json"):
        checkpoint.check_checkpoint(path)
    (path / "files.json").rmdir()
    (path / "files.json").symlink_to("files.json")  # a loop
    with pytest.raises(ValueError, match=r"damaged checkpoint \(files.json"):
        checkpoint.check_checkpoint(path)
    (path / "files.json").unlink()
    with pytest.raises(ValueError, match="step-00000001: not a checkpoint"):
        checkpoint.check_checkpoint(path)
