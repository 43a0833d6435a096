"""Where a run resumes, and whether it is still the same run."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoints import STATE, make_identity, write_checkpoint

from pipeline.checkpoint.best import Scores, load_scores, save_scores
from pipeline.checkpoint.resume import check_continues, check_scores, find_resume_point
from pipeline.checkpoint.state import TrainState

GREEDY, BEAM = {"method": "greedy", "max_tokens": 30}, {"method": "beam", "beam": 3}


def test_a_run_continues_only_as_the_same_run(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, STATE)
    check_continues(path, make_identity(), batch_size=10, num_slots=60, num_steps=6)
    with pytest.raises(ValueError, match=r"value of seed \(0, now 1\)"):
        check_continues(path, make_identity(seed=1), 10, 60, 6)
    with pytest.raises(ValueError, match=r"train.steps, train.epochs: .* after 2 steps"):
        check_continues(path, make_identity(), 10, 20, 2)


def test_an_incomplete_last_batch_is_not_filled_later(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, replace(STATE, samples_consumed=25))
    check_continues(path, make_identity(), batch_size=10, num_slots=25, num_steps=3)
    with pytest.raises(ValueError, match="incomplete batch"):
        check_continues(path, make_identity(), batch_size=10, num_slots=50, num_steps=5)


def test_a_checkpoint_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, STATE)
    (path / "state.json").write_text('{"step": 3, "updates": 3, "digest": "d"}')  # as 0.1 wrote it
    with pytest.raises(ValueError, match="another version of Capstream") as caught:
        check_continues(path, make_identity(), 10, 60, 6)
    assert "\n" not in str(caught.value)


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    assert find_resume_point(checkpoints, "auto").checkpoint is None
    first, last = (write_checkpoint(tmp_path, TrainState(step=step)) for step in (1, 2))
    assert find_resume_point(checkpoints, "auto").checkpoint == last
    with pytest.raises(ValueError, match="already holds checkpoints"):
        find_resume_point(checkpoints, "never")
    (last / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"train\.resume previous"):
        find_resume_point(checkpoints, "auto")
    found = find_resume_point(checkpoints, "previous")
    assert found.checkpoint == first
    assert list(found.damaged) == [last]
    (first / "state.json").unlink()
    with pytest.raises(ValueError, match="no earlier checkpoint"):
        find_resume_point(checkpoints, "previous")


def test_scores_of_two_validation_sets_or_methods_do_not_mix(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, STATE)
    save_scores(path.parent, Scores().after(3, {"CIDEr": 0.5}, "one", GREEDY))
    scores = load_scores(path.parent, last_step=3)
    assert scores == Scores("one", {3: {"CIDEr": 0.5}}, GREEDY)
    check_scores(path, scores, "val", "one", GREEDY)
    with pytest.raises(ValueError, match=r"data.val: val is not the validation set"):
        check_scores(path, scores, "val", "two", GREEDY)
    with pytest.raises(
        ValueError, match=r"generation.*captions by greedy \(max_tokens 30\), and now it is beam"
    ):
        check_scores(path, scores, "val", "one", BEAM)
    check_scores(path, scores, "val", "one", {**GREEDY, "block_unk": False})  # the default
    forgotten = load_scores(path.parent, last_step=2)
    check_scores(path, forgotten, "val", "two", BEAM)
