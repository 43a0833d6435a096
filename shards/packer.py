"""A packing process. It is replaced when it dies, whether an image or somebody killed it."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection
from typing import Any

import cv2

from shards.build import ShardJob, Suspicion, build_shard
from shards.guard import died_of, limit_memory
from shards.storage import is_remote

MAX_DEATHS = 3  # of processes that pack one shard; after that no image can be to blame


class Packer:
    """Packs shards, one after the other, in a process of its own."""

    def __init__(self) -> None:
        self.num_done = 0  # records of finished shards
        self._context = multiprocessing.get_context("spawn")  # the same on all systems
        # The process writes it without a lock: only the newest value matters.
        self._position = self._context.RawValue("q", 0)
        self._closed = False
        self._closing = threading.Lock()  # no process may start while `close` kills the last
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=_serve, args=(theirs, self._position), daemon=True
        )
        self._process.start()
        theirs.close()  # so that reading fails here when the process dies

    @property
    def progress(self) -> int:
        """Number of records packed so far, those of the unfinished shard included."""
        return self.num_done + int(self._position.value)

    def pack(self, job: ShardJob) -> None:
        """Do one job. If the process dies, a new one does the job again with more care.

        Raises:
            OSError: as `build_shard`, or MAX_DEATHS processes died.
            ValueError: as `build_shard`.
        """
        suspicion = None
        for _ in range(MAX_DEATHS):
            answer = self._try(job, suspicion)
            if answer is None:
                self._position.value = 0
                self.num_done += len(job.records)
                return
            if isinstance(answer, Exception):
                raise answer
            suspicion = answer
        raise OSError(
            f"{job.tar_path}: {MAX_DEATHS} processes died while packing it, the last at "
            f"{job.records[min(self._position.value, len(job.records) - 1)].file_name} "
            f"({suspicion.reason if suspicion else ''}); is memory short?"
        )

    def _try(self, job: ShardJob, suspicion: Suspicion | None) -> Exception | Suspicion | None:
        try:
            self._pipe.send((job, suspicion))
            answer: Exception | None = self._pipe.recv()
            return answer
        except (EOFError, OSError):  # the process died
            self._process.join()
        position, status = int(self._position.value), self._process.exitcode or 0
        with self._closing:
            if self._closed:
                return InterruptedError("stopped")
            self._start()
        # A process that fetches images spends processor time on that too: then no image is blamed.
        if -status == signal.SIGPROF and not is_remote(job.images_dir):
            return Suspicion(position, died_of(-status))
        reason = f"signal {-status}" if status < 0 else f"exit code {status}"
        return Suspicion(reason=reason)

    def close(self) -> None:
        """Kill the process. At most a temporary file is left behind."""
        with self._closing:
            self._closed = True
            self._process.kill()
        self._process.join()


def _serve(pipe: Any, position: Any) -> None:
    """The main function of the process: it does the jobs from the pipe, and answers each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent stops
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process for each core is enough
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit_memory()
    cv2.setNumThreads(1)  # the packing processes use all cores already

    def note(number: int) -> None:
        position.value = number

    while True:
        job, suspicion = pipe.recv()
        try:
            build_shard(job, note, suspicion)
        except (OSError, ValueError, MemoryError) as error:
            pipe.send(error if isinstance(error, OSError) else OSError(f"{job.tar_path}: {error}"))
        else:
            pipe.send(None)


def _end_with_parent() -> None:
    """End this process as soon as its parent is gone: after a kill nobody else would end it.

    A temporary file may be left behind, as after any kill.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
