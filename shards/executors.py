"""Where shard jobs run. Jobs are independent, so an executor only has to run each of them."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from shards.build import ShardJob, build_shard

POLL_S = 0.2  # how often the progress bar moves

_num_done: "Synchronized[int]"  # records finished by all processes, set once in each


def run_local(jobs: list[ShardJob], num_workers: int, on_progress: Callable[[int], None]) -> None:
    """Run the jobs in `num_workers` processes of this machine.

    Args:
        on_progress: called now and then with the number of records done so far.
    Raises:
        Exception: whatever the first failing job raised; the jobs not yet begun are dropped.
    """
    context = multiprocessing.get_context("spawn")  # the same on every platform, and no threads
    num_done = context.Value("q", 0)
    workers = min(num_workers, len(jobs)) or 1
    with ProcessPoolExecutor(workers, context, _start_worker, (num_done,)) as pool:
        pending: set[Future[None]] = {pool.submit(_run_job, job) for job in jobs}
        try:
            while pending:
                finished, pending = wait(pending, POLL_S, FIRST_COMPLETED)
                on_progress(num_done.value)
                for future in finished:
                    future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_worker(num_done: Any) -> None:
    global _num_done
    _num_done = num_done
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is parallel enough
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is gone: after a kill nobody else would end it.

    At once, whatever it is doing: only a temporary file is left, as after any kill.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _run_job(job: ShardJob) -> None:
    def count_record() -> None:
        with _num_done.get_lock():
            _num_done.value += 1

    build_shard(job, count_record)  # its sidecar tells the rest; nothing big travels back
