"""Scores of a run's evaluations, and the link `best` to the checkpoint that scored best."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.checkpoint.commit import step_of
from pipeline.checkpoint.folder import BEST, list_checkpoints
from shards.atomic import fsync_folder, write_atomic
from shards.format.stored_json import canonical_json

SCORES = "scores.json"
SELECTED_BY = "CIDEr"  # the score that selects the best checkpoint


@dataclass(frozen=True)
class Scores:
    """The scores of every evaluation of a run, all on one validation set and decoded alike.

    Args:
        data_digest: digest of the validation set; none before the first evaluation.
        by_step: step -> name of a score -> value.
        generation: the generation settings that were used; empty if unknown.
    """

    data_digest: str | None = None
    by_step: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    def after(
        self,
        step: int,
        scores: Mapping[str, float],
        data_digest: str,
        generation: Mapping[str, Any],
    ) -> "Scores":
        """The scores with those of one more evaluation."""
        by_step = {**self.by_step, step: scores}
        return Scores(data_digest, by_step, generation)


def load_scores(checkpoints: Path, last_step: int) -> Scores:
    """The scores of a run's evaluations up to `last_step`, from which the run resumes.

    Later ones belong to steps that the run will do again.

    Raises:
        ValueError: the file is damaged.
    """
    path = checkpoints / SCORES
    if not path.exists():
        return Scores()
    try:
        found = json.loads(path.read_bytes())
        by_step = {int(step): dict(scores) for step, scores in found["scores"].items()}
        digest = str(found["data_digest"])
        generation = dict(found.get("generation", {}))
        for scores in by_step.values():
            float(scores[SELECTED_BY])
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path}: damaged ({error!r}); delete the file to continue: the scores of earlier "
            "evaluations are then forgotten, the checkpoints are not"
        ) from None
    kept = {step: scores for step, scores in by_step.items() if step <= last_step}
    return Scores(digest, kept, generation) if kept else Scores()


def save_scores(checkpoints: Path, scores: Scores) -> None:
    """Write the scores atomically."""
    by_step = {str(step): dict(values) for step, values in scores.by_step.items()}
    content = {
        "data_digest": scores.data_digest,
        "generation": dict(scores.generation),
        "scores": by_step,
    }
    write_atomic(checkpoints / SCORES, canonical_json(content))


def mark_best(checkpoints: Path, scores: Scores) -> None:
    """Point `best` to the checkpoint with the best score, the earliest of equal ones.

    In a run without evaluations it points to the newest checkpoint. A scored checkpoint that is no
    longer there, because it was damaged, does not count.
    """
    found = {step_of(path): path for path in list_checkpoints(checkpoints)}
    scored = [step for step in found if step in scores.by_step]
    if scored:
        best = max(scored, key=lambda step: (scores.by_step[step][SELECTED_BY], -step))
        _point_to(found[best])
    elif found and not scores.by_step:
        _point_to(found[max(found)])


def _point_to(checkpoint: Path) -> None:
    """Replace the link atomically."""
    link = checkpoint.parent / BEST
    temporary = link.with_name(f".{BEST}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.name)
    os.replace(temporary, link)
    fsync_folder(link.parent)
