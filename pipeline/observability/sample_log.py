"""The sample log: which images each rank trained on in each step."""

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.batch import ImageId


class SampleLog:
    """Appends one line a step to PREFIX.rankR.jsonl; without a prefix it writes nothing."""

    def __init__(self, prefix: str | None, rank: int) -> None:
        self._file = None
        if prefix is not None:
            path = Path(f"{prefix}.rank{rank}.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            # Buffered by line, so that a kill loses none; open for as long as the process lives.
            self._file = open(path, "a", buffering=1)  # noqa: SIM115

    def write(self, step: int, ids: Sequence[ImageId]) -> None:
        """Append the image ids that this rank trains on in a step, in slot order."""
        if self._file:
            self._file.write(json.dumps({"step": step, "ids": list(ids)}) + "\n")
