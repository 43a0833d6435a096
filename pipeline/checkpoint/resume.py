"""Which checkpoint a run continues from, and whether the run is still the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.checkpoint.best import SCORES, Scores
from pipeline.checkpoint.commit import check_checkpoint, load_state
from pipeline.checkpoint.folder import list_checkpoints
from pipeline.checkpoint.identity import RunIdentity
from pipeline.config.generation import describe, same_captions


@dataclass(frozen=True)
class ResumePoint:
    """Where a run continues.

    Args:
        checkpoint: the checkpoint; none starts from the beginning.
        damaged: newer checkpoints that are damaged and not used -> what is wrong with each.
    """

    checkpoint: Path | None = None
    damaged: Mapping[Path, str] = field(default_factory=dict)


def find_resume_point(checkpoints: Path, policy: str) -> ResumePoint:
    """The newest usable checkpoint of a run folder.

    Args:
        policy: `train.resume`: `auto`, `previous` or `never`.
    Raises:
        ValueError: there are checkpoints and the policy is `never`; the newest is damaged and the
            policy is `auto`; all are damaged.
    """
    found = list(list_checkpoints(checkpoints))
    if found and policy == "never":
        raise ValueError(
            f"run_dir: {checkpoints.parent} already holds checkpoints; name another folder, or set "
            "train.resume to `auto` to continue from them"
        )
    damaged: dict[Path, str] = {}
    for path in reversed(found):
        try:
            check_checkpoint(path)
        except ValueError as error:
            damaged[path] = str(error)
            if len(found) > 1 and policy == "auto":
                raise ValueError(
                    f"{error}; the checkpoint before it is {found[-2].name}: set `train.resume "
                    "previous` to continue from the newest checkpoint that is not damaged"
                ) from None
        else:
            return ResumePoint(path, damaged)
    if damaged:
        raise ValueError(
            f"{'; '.join(damaged.values())}; there is no earlier checkpoint to continue from: to "
            "train from the beginning name another run_dir"
        )
    return ResumePoint()


def check_continues(
    checkpoint: Path, identity: RunIdentity, batch_size: int, num_slots: int, num_steps: int
) -> None:
    """Whether the run as it is now configured is the one that wrote the checkpoint.

    Args:
        identity: of the run as it is now.
        batch_size: images in a global batch.
        num_slots: positions of the sample sequence that the run consumes in all.
        num_steps: steps of the whole run.
    Raises:
        ValueError: names the setting that differs.
    """
    state, saved = load_state(checkpoint)
    for name, then, now in saved.differences(identity):
        raise ValueError(
            f"{checkpoint}: was trained with another value of {name} ({then}, now {now}); to train "
            "from the beginning name another run_dir"
        )
    if state.step > num_steps:
        raise ValueError(
            f"train.steps, train.epochs: they end the run after {num_steps:,} steps, but "
            f"{checkpoint} has done {state.step:,} already"
        )
    if state.samples_consumed < state.step * batch_size and state.samples_consumed < num_slots:
        raise ValueError(
            f"train.steps, train.epochs: {checkpoint} ended a run with an incomplete batch, which "
            "a longer run would have filled; continuing would leave those samples out. To train "
            "longer name another run_dir"
        )


def check_scores(
    checkpoint: Path,
    scores: Scores,
    val_place: str,
    val_digest: str,
    generation: Mapping[str, Any],
) -> None:
    """Whether earlier and later scores can be compared: the same data set, decoded alike.

    Args:
        scores: those so far.
        val_place: folder or URL of the validation set.
        val_digest: its digest.
        generation: the generation settings that are used from now on.
    Raises:
        ValueError: they do not, so the best of them would mean nothing.
    """
    do = (
        f"delete {checkpoint.parent / SCORES} to select the best checkpoint by the new ones alone, "
        "or name another run_dir"
    )
    if scores.data_digest not in (None, val_digest):
        raise ValueError(
            f"data.val: {val_place} is not the validation set that {checkpoint} was scored on; {do}"
        )
    if scores.generation and not same_captions(scores.generation, generation):
        raise ValueError(
            f"generation.*: {checkpoint} was scored with captions by "
            f"{describe(scores.generation)}, and now it is {describe(generation)}, so the scores "
            f"do not compare; {do}"
        )
