"""Commits: whole, or named as damaged; the best one kept."""

import json
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_identity, make_record

from pipeline.checkpoint import best, commit
from pipeline.checkpoint import folder as folders
from pipeline.checkpoint.state import TrainState


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    return path


def write(folder: Path, tokenizer: Path, step: int) -> Path:
    model = {"weight": torch.arange(6.0).view(2, 3) + step}
    optimizer = {"optimizer": {"state": {0: {"step": torch.tensor(float(step))}}}}
    record = make_record(tokenizer)
    return commit.commit(folder, record, TrainState(step=step), model, optimizer)


def test_a_commit_reads_back(tmp_path: Path, tokenizer: Path) -> None:
    path = write(tmp_path / "c", tokenizer, 12)
    assert path.name == "step-00000012"
    commit.check_checkpoint(path)
    assert commit.load_state(path) == (TrainState(step=12), make_identity())
    assert commit.load_model_state(path)["weight"].tolist() == [[12, 13, 14], [15, 16, 17]]
    assert commit.load_optimizer_state(path)["optimizer"]["state"][0]["step"] == 12.0
    assert set(json.loads((path / "files.json").read_text())) | {"files.json"} == {
        p.name for p in path.iterdir()
    }


def test_every_damaged_or_missing_file_is_named(tmp_path: Path, tokenizer: Path) -> None:
    path = write(tmp_path / "c", tokenizer, 1)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for broken in (whole[:-1], whole[: len(whole) // 2], bytes([whole[0] ^ 1]) + whole[1:]):
            file.write_bytes(broken)
            with pytest.raises(ValueError, match=f"damaged checkpoint.*{file.name}"):
                commit.check_checkpoint(path)
        file.unlink()
        with pytest.raises(ValueError, match=f"damaged checkpoint.*{file.name}"):
            commit.check_checkpoint(path)
        file.write_bytes(whole)
    commit.check_checkpoint(path)


def test_old_commits_go_and_the_best_stays(tmp_path: Path, tokenizer: Path) -> None:
    folder = tmp_path / "c"
    for step in (1, 2, 30, 4):
        write(folder, tokenizer, step)
        if step == 2:
            best.mark_best(folder, best.Scores("v", {step: {"CIDEr": 1.0}}))
    (folder / ".step-00000005.77.tmp").mkdir()
    (folder / ".best.77.tmp").symlink_to("step-00000002")
    folders.prune(folder, keep=1)
    assert [p.name for p in folders.list_checkpoints(folder)] == ["step-00000002", "step-00000030"]
    assert (folder / "best").resolve().name == "step-00000002"
    assert not list(folder.glob(".*"))


def test_a_commit_set_aside_makes_room_and_is_not_the_best(tmp_path: Path, tokenizer: Path) -> None:
    folder = tmp_path / "c"
    write(folder, tokenizer, 1)
    for expected in ("damaged-step-00000002", "damaged-step-00000002.1"):
        path = write(folder, tokenizer, 2)
        best.mark_best(folder, best.Scores("v", {2: {"CIDEr": 1.0}}))
        aside = folders.set_aside(path)
        assert aside.name == expected
        assert (aside / "model.safetensors").exists()
        assert [p.name for p in folders.list_checkpoints(folder)] == ["step-00000001"]
        assert not (folder / "best").is_symlink()
    folders.prune(folder, keep=1)
    assert aside.exists()


def test_a_failed_commit_leaves_nothing(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "c", tokenizer, 1)

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "c", tokenizer, 2)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["step-00000001"]


def test_optimizer_files_run_no_code(tmp_path: Path, tokenizer: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (exec, ("raise SystemExit('ran')",))

    path = write(tmp_path / "c", tokenizer, 1)
    torch.save({"optimizer": Attack()}, path / "optimizer.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        commit.load_optimizer_state(path)
