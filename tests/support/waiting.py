"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable


def wait_until(reached: Callable[[], object], limit_s: float = 20.0) -> None:
    """Return as soon as a condition holds; fail if it does not hold in time."""
    deadline = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)
