"""Limits on the processor time and memory of decoding one image, because files may be hostile.

A process that exceeds the time limit, or whose decoder crashes, dies. Its parent packs the shard
again with each image in a process of its own: then it is known which image is to blame, and only
that one is rejected.
"""

import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from shards.images import RejectedImageError

IMAGE_CPU_S = 2.0  # a PNG of 64 megapixels takes about 1 s
IMAGE_MEMORY_BYTES = 3 << 30  # above what the process uses when it starts

PATIENCE_S = 60  # limit of the wait for a decoder, which may hang without using the processor

Packed = tuple[bytes, int, int]  # JPEG bytes, width, height


def limit_memory() -> None:
    """Limit the growth of this process to IMAGE_MEMORY_BYTES; beyond it MemoryError is raised."""
    statm = Path("/proc/self/statm")
    if not statm.exists():  # macOS does not enforce such limits
        return
    present = int(statm.read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = present + IMAGE_MEMORY_BYTES
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def bounded(work: Callable[[], Packed]) -> Packed:
    """Call `work`; after IMAGE_CPU_S this process dies of SIGPROF.

    Dying is the only way to interrupt a decoder written in C.

    Raises:
        RejectedImageError: raised by `work`, or it needed too much memory.
    """
    signal.setitimer(signal.ITIMER_PROF, IMAGE_CPU_S)
    try:
        return work()
    except MemoryError:
        raise RejectedImageError("too costly", "takes too much memory to decode") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def bounded_in_own_process(work: Callable[[], Packed]) -> Packed:
    """Call `work` like `bounded`, but in a forked process: only that process dies.

    Raises:
        RejectedImageError: raised by `work`, or the image killed the process.
        OSError: the process was killed from outside, or gave no answer.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            with open(writing, "wb") as answer:
                answer.write(_answer(work))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    data = _read_all(reading)
    if data is None:  # perhaps forked while a thread held a lock: the image is not to blame
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if data is None:
        raise OSError(f"the decoder of an image gave no answer in {PATIENCE_S} s")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL:
            raise OSError("the decoder of an image was killed from outside; is memory short?")
        raise RejectedImageError(
            "too costly" if number == signal.SIGPROF else "crash", died_of(number)
        )
    if status:
        raise RejectedImageError("crash", "the decoder's process ended without an answer")
    head, _, jpeg = data.partition(b"\n")
    answer = json.loads(head)
    if "reason" in answer:
        raise RejectedImageError(answer["reason"], answer["detail"])
    return jpeg, answer["width"], answer["height"]


def _read_all(descriptor: int) -> bytes | None:
    """The bytes from a pipe until its other end closes, or None after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    parts: list[bytes] = []
    with open(descriptor, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = pipe.read(1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return None


def _answer(work: Callable[[], Packed]) -> bytes:
    """The answer of the forked process: a line of JSON, then the JPEG."""
    try:
        jpeg, width, height = bounded(work)
    except RejectedImageError as error:
        return json.dumps({"reason": error.reason, "detail": error.detail}).encode() + b"\n"
    return json.dumps({"width": width, "height": height}).encode() + b"\n" + jpeg


def died_of(number: int) -> str:
    """The meaning of the signal that ended a decoder."""
    if number == signal.SIGPROF:
        return f"takes more than {IMAGE_CPU_S:g} s to decode"
    return f"crashed the decoder ({signal.Signals(number).name})"
