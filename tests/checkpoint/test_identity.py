"""What must stay the same when a run resumes: written, read, compared."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import make_identity, make_record

from pipeline.checkpoint import commit
from pipeline.checkpoint.best import Scores, load_scores, save_scores
from pipeline.checkpoint.identity import RunIdentity
from pipeline.checkpoint.resume import check_continues, check_scores, find_resume_point
from pipeline.checkpoint.state import TrainState
from pipeline.config.data import DataConfig
from pipeline.config.model import EncoderConfig, ModelConfig
from pipeline.config.run import Config

VALUES = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5)


@given(st.integers(0, 9), st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_an_identity_survives_json(seed: int, model: dict) -> None:
    identity = make_identity(seed=seed, model=model)
    again = RunIdentity.from_json(json.loads(json.dumps(identity.to_json())))
    assert again == identity
    assert not list(identity.differences(again))


@pytest.mark.parametrize("field", [field.name for field in fields(RunIdentity)])
def test_every_field_is_compared(field: str) -> None:
    one = make_identity()
    changed = {"model.dim": 9} if field == "model" else "other"
    other = replace(one, **{field: changed})
    ((name, then, now),) = one.differences(other)
    assert (then, now) == ((8, 9) if field == "model" else (getattr(one, field), "other"))
    assert field in ("model", "seed") or name != field or field in name


def test_settings_that_are_added_or_gone_differ() -> None:
    one, other = make_identity(model={"model.dim": 8}), make_identity(model={"model.width": 8})
    assert [name for name, *_ in one.differences(other)] == ["model.dim", "model.width"]


def test_a_setting_that_is_newer_than_the_checkpoint_had_its_default() -> None:
    then = make_identity(model={})
    default = EncoderConfig().dropout
    assert not list(then.differences(make_identity(model={"model.encoder.dropout": default})))
    ((name, was, now),) = then.differences(make_identity(model={"model.encoder.dropout": 0.125}))
    assert (name, was, now) == ("model.encoder.dropout", default, 0.125)


def identity_of(config: Config) -> RunIdentity:
    return RunIdentity.of(config, "digest", "tokenizer", 1)


def test_the_identity_of_a_configuration_names_its_settings() -> None:
    config = Config(data=DataConfig(train="x"))
    changed = replace(config, seed=1, model=ModelConfig(encoder=EncoderConfig(hidden_dim=5)))
    names = [name for name, *_ in identity_of(config).differences(identity_of(changed))]
    assert names == ["seed", "model.encoder.hidden_dim"]


def test_it_does_not_matter_which_file_the_first_weights_came_from() -> None:
    def with_weights(weights: str | None) -> RunIdentity:
        return identity_of(Config(model=ModelConfig(encoder=EncoderConfig(weights=weights))))

    assert with_weights("a.pth") == with_weights("b.pth")
    assert with_weights("a.pth") != with_weights(None)


# ------------------------------------------------------------------------------------- resuming


def write(folder: Path, state: TrainState) -> Path:
    (folder / "words").write_text("{}")
    tensors = {"weight": torch.zeros(1)}
    return commit.commit(folder / "checkpoints", make_record(folder / "words"), state, tensors, {})


STATE = TrainState(step=3, updates=3, num_bad=1, samples_consumed=30)


def test_what_went_into_a_checkpoint_comes_out(tmp_path: Path) -> None:
    assert commit.load_state(write(tmp_path, STATE)) == (STATE, make_identity())


def test_a_step_counts_what_it_consumed() -> None:
    state = STATE.after_step(num_samples=7, num_bad=2, skipped=True)
    assert state == TrainState(step=4, updates=3, num_bad=3, samples_consumed=37)


def test_a_run_continues_only_as_the_same_run(tmp_path: Path) -> None:
    path = write(tmp_path, STATE)
    check_continues(path, make_identity(), batch_size=10, num_slots=60, num_steps=6)
    with pytest.raises(ValueError, match=r"value of seed \(0, now 1\)"):
        check_continues(path, make_identity(seed=1), 10, 60, 6)
    with pytest.raises(ValueError, match=r"train.steps, train.epochs: .* after 2 steps"):
        check_continues(path, make_identity(), 10, 20, 2)


def test_an_incomplete_last_batch_is_not_filled_later(tmp_path: Path) -> None:
    path = write(tmp_path, replace(STATE, samples_consumed=25))
    check_continues(path, make_identity(), batch_size=10, num_slots=25, num_steps=3)
    with pytest.raises(ValueError, match="incomplete batch"):
        check_continues(path, make_identity(), batch_size=10, num_slots=50, num_steps=5)


def test_a_checkpoint_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, STATE)
    (path / "state.json").write_text('{"step": 3, "updates": 3, "digest": "d"}')  # as 0.1 wrote it
    with pytest.raises(ValueError, match="another version of Capstream") as caught:
        check_continues(path, make_identity(), 10, 60, 6)
    assert "\n" not in str(caught.value)


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    assert find_resume_point(checkpoints, "auto").commit is None
    first, last = (write(tmp_path, TrainState(step=step)) for step in (1, 2))
    assert find_resume_point(checkpoints, "auto").commit == last
    with pytest.raises(ValueError, match="already holds checkpoints"):
        find_resume_point(checkpoints, "never")
    (last / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"train\.resume previous"):
        find_resume_point(checkpoints, "auto")
    found = find_resume_point(checkpoints, "previous")
    assert found.commit == first
    assert list(found.damaged) == [last]
    (first / "state.json").unlink()
    with pytest.raises(ValueError, match="no earlier checkpoint"):
        find_resume_point(checkpoints, "previous")


def test_scores_of_two_validation_sets_do_not_mix(tmp_path: Path) -> None:
    path = write(tmp_path, STATE)
    save_scores(path.parent, Scores().after(3, {"CIDEr": 0.5}, "one"))
    scores = load_scores(path.parent, last_step=3)
    assert scores == Scores("one", {3: {"CIDEr": 0.5}})
    check_scores(path, scores, "val", "one")
    with pytest.raises(ValueError, match=r"data.val: val is not the validation set"):
        check_scores(path, scores, "val", "two")
    check_scores(path, load_scores(path.parent, last_step=2), "val", "two")  # all forgotten
