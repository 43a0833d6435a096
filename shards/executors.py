"""Running shard jobs: in processes of this machine or on a Ray cluster."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from shards.build import ShardJob
from shards.packer import Packer
from shards.storage import is_remote

POLL_S = 0.2  # between two updates of the progress bar
RAY_RETRIES = 3  # of a job whose machine or process was lost

OnProgress = Callable[[int], None]  # called with the number of records done so far


def share_of(jobs: list[ShardJob], index: int, count: int) -> list[ShardJob]:
    """The jobs of member `index` of an array of `count` members.

    Raises:
        ValueError: the array has no such member.
    """
    if not 0 <= index < count:
        raise ValueError(f"--job_index must be 0 to {count - 1} (--job_count {count}), not {index}")
    return [job for job in jobs if job.number % count == index]


@contextmanager
def local_packers(count: int) -> Iterator[list[Packer]]:
    """Start `count` packing processes on this machine; they are killed when the block ends."""
    packers: list[Packer] = []
    try:
        packers += [Packer() for _ in range(count)]
        yield packers
    finally:
        for packer in packers:
            packer.close()


def run_local(jobs: list[ShardJob], packers: list[Packer], on_progress: OnProgress) -> None:
    """Run the jobs in packing processes of this machine.

    Raises:
        OSError, ValueError: from the first job that failed; the other jobs are dropped.
    """
    waiting = iter(jobs)  # shared by the threads: taking the next item is atomic
    with ThreadPoolExecutor(len(packers)) as threads:
        pending = {threads.submit(_pack_all, packer, waiting) for packer in packers}
        try:
            while pending:
                finished, pending = wait(pending, POLL_S, FIRST_COMPLETED)
                on_progress(sum(packer.progress for packer in packers))
                for future in finished:
                    future.result()
        except BaseException:
            for packer in packers:  # its thread ends when a packer is closed
                packer.close()
            raise


def _pack_all(packer: Packer, jobs: Iterator[ShardJob]) -> None:
    for job in jobs:
        packer.pack(job)


def run_ray(jobs: list[ShardJob], address: str | None, on_progress: OnProgress) -> None:
    """Run the jobs on a Ray cluster, on one CPU each. A job whose machine is lost runs elsewhere.

    All machines must reach the folders by the same paths or URLs.

    Args:
        address: address of the cluster. None takes RAY_ADDRESS, or starts Ray on this machine.
    Raises:
        ValueError: Ray is not installed.
        OSError: a job failed; the message is the job's.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            f"--executor ray needs the extra `ray`: pip install '.[ray]' in the checkout ({error})"
        ) from None
    ray.init(
        address=address,
        runtime_env={
            "py_modules": [str(Path(__file__).parent)]
        },  # sends this package to every machine
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        run = ray.remote(max_retries=RAY_RETRIES, num_cpus=1)(_run_on_ray)
        sizes = {run.remote(_with_whole_paths(job)): len(job.records) for job in jobs}
        pending, done = list(sizes), 0
        while pending:
            finished, pending = ray.wait(pending, timeout=POLL_S)
            for reference in finished:
                _get(ray, reference)
                done += sizes[reference]
            on_progress(done)
    finally:
        ray.shutdown()


def _with_whole_paths(job: ShardJob) -> ShardJob:
    """Make paths absolute: the processes of Ray have other working folders."""

    def whole(path: Path) -> Path:
        return path if is_remote(path) else path.absolute()

    return replace(
        job,
        images_dir=whole(job.images_dir),
        out_dir=whole(job.out_dir),
        tokenizer=whole(job.tokenizer),
    )


def _get(ray: Any, reference: Any) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise OSError(str(error.cause)) from None
    except ray.exceptions.RayError as error:
        raise OSError(f"Ray: {str(error).splitlines()[0]}") from None


def _run_on_ray(job: ShardJob) -> None:
    _packer_of_this_process().pack(job)


@lru_cache(maxsize=1)
def _packer_of_this_process() -> Packer:
    return Packer()  # once for a Ray process, not for each shard
