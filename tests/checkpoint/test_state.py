"""The state of a run: what goes into a checkpoint and comes out of it."""

from pathlib import Path

from support.checkpoints import STATE, make_identity, write_checkpoint

from pipeline.checkpoint import commit
from pipeline.checkpoint.state import TrainState


def test_what_went_into_a_checkpoint_comes_out(tmp_path: Path) -> None:
    assert commit.load_state(write_checkpoint(tmp_path, STATE)) == (STATE, make_identity())


def test_a_step_counts_what_it_consumed() -> None:
    state = STATE.after_step(num_samples=7, num_bad=2, skipped=True)
    assert state == TrainState(step=4, updates=3, num_bad=3, samples_consumed=37)
