"""The scores of a run, and the link to its best checkpoint."""

import json
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint

from pipeline.checkpoint.best import SCORES, Scores, load_scores, mark_best, save_scores
from pipeline.checkpoint.folder import BEST
from pipeline.checkpoint.state import TrainState


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """The checkpoints of steps 1 to 4."""
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, TrainState(step=step))
    return tmp_path / "checkpoints"


def best_step(checkpoints: Path, cider: dict[int, float]) -> str | None:
    mark_best(checkpoints, Scores("v", {step: {"CIDEr": value} for step, value in cider.items()}))
    link = checkpoints / BEST
    return str(link.readlink()) if link.is_symlink() else None


def test_the_checkpoint_with_the_highest_score_is_the_best(checkpoints: Path) -> None:
    assert best_step(checkpoints, {1: 0.1, 2: 0.9, 3: 0.5}) == "step-00000002"
    assert best_step(checkpoints, {1: 0.1, 2: 0.9, 3: 0.5, 4: 1.2}) == "step-00000004"


def test_the_earliest_of_equal_scores_is_the_best(checkpoints: Path) -> None:
    assert best_step(checkpoints, {4: 0.5, 2: 0.5, 3: 0.5, 1: 0.1}) == "step-00000002"


def test_the_best_checkpoint_of_a_run_without_scores_is_the_last(checkpoints: Path) -> None:
    assert best_step(checkpoints, {}) == "step-00000004"


def test_a_score_without_a_checkpoint_does_not_count(checkpoints: Path) -> None:
    assert best_step(checkpoints, {9: 2.0}) is None  # a score, but of no checkpoint that is there
    assert best_step(checkpoints, {1: 0.2, 3: 0.1, 9: 2.0}) == "step-00000001"


def test_nothing_is_marked_in_a_folder_without_checkpoints(tmp_path: Path) -> None:
    assert best_step(tmp_path, {}) is None


def test_saved_scores_are_loaded_up_to_the_step_that_the_run_resumes_from(tmp_path: Path) -> None:
    scores = Scores().after(2, {"CIDEr": 0.25, "BLEU-4": 0.5}, "v", {"method": "greedy"})
    scores = scores.after(4, {"CIDEr": 0.1}, "v", {"method": "greedy"})
    save_scores(tmp_path, scores)
    assert load_scores(tmp_path, last_step=4) == scores
    assert load_scores(tmp_path, last_step=3).by_step == {2: {"CIDEr": 0.25, "BLEU-4": 0.5}}
    assert load_scores(tmp_path, last_step=1) == Scores()


@pytest.mark.parametrize(
    "content",
    [
        {"data_digest": "v", "scores": {"2": {"BLEU-4": 0.5}}},
        {"data_digest": "v", "scores": {"2": {"CIDEr": None}}},
        {"data_digest": "v", "scores": {"two": {"CIDEr": 0.5}}},
        {"data_digest": "v", "scores": {"2": 0.5}},
        {"scores": {}},
        [],
    ],
    ids=["no CIDEr", "null", "no step", "no names", "no digest", "list"],
)
def test_damaged_scores_are_refused_in_one_line(tmp_path: Path, content: object) -> None:
    (tmp_path / SCORES).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"scores\.json: damaged .*delete the file") as caught:
        load_scores(tmp_path, last_step=4)
    assert "\n" not in str(caught.value)
