"""What is shown and logged."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MonitorConfig:
    """What is shown and logged.

    Args:
        log_every: steps from one TensorBoard point to the next.
        num_pictures: pictures with captions shown at each evaluation.
        sample_log: path prefix; process R appends {"step":..,"ids":[..]} to PREFIX.rankR.jsonl.
    """

    log_every: int = 10
    num_pictures: int = 8
    sample_log: str | None = None
