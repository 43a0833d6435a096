"""Settings of what a run logs and shows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MonitorConfig:
    """Logs and TensorBoard.

    Args:
        log_every: steps between two points in TensorBoard.
        num_images: validation images that TensorBoard shows with their captions at each evaluation.
        sample_log: path prefix of the sample log; rank R appends a line {"step":..,"ids":[..]} for
            each step to PREFIX.rankR.jsonl. Null for no log.
    """

    log_every: int = 10
    num_images: int = 8
    sample_log: str | None = None
