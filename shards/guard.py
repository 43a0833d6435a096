"""Bounds on what one image may cost, for decoders are not to be trusted with others' files.

An image is decoded under a limit of processor time and of memory. Beyond the first, or where a
decoder crashes, the process dies; the one who started it does the shard again, each image in a
process of its own, so that whatever dies is known and only it is left out.
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

IMAGE_CPU_S = 2.0  # a 64-megapixel PNG takes about one
IMAGE_MEMORY_BYTES = 3 << 30  # beyond what the process has when it begins

PATIENCE_S = 60  # of waiting for a decoder that may use no processor time at all

Packed = tuple[bytes, int, int]  # JPEG bytes, width, height


def limit_memory() -> None:
    """Let this process grow by IMAGE_MEMORY_BYTES: asking for more raises MemoryError."""
    statm = Path("/proc/self/statm")
    if not statm.exists():  # macOS does not keep such limits
        return
    present = int(statm.read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = present + IMAGE_MEMORY_BYTES
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def bounded(work: Callable[[], Packed]) -> Packed:
    """Do it within IMAGE_CPU_S, or die of SIGPROF: no decoder in C can be interrupted otherwise.

    Raises:
        RejectedImageError: what `work` raises, or it needed too much memory.
    """
    signal.setitimer(signal.ITIMER_PROF, IMAGE_CPU_S)
    try:
        return work()
    except MemoryError:
        raise RejectedImageError("too costly", "takes too much memory to decode") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def bounded_in_own_process(work: Callable[[], Packed]) -> Packed:
    """`bounded` in a forked process, which may die.

    Raises:
        RejectedImageError: what `work` raises, or the process died of it.
        OSError: the process was killed from outside: nothing is known of the image.
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
    if data is None:  # forked while a thread held a lock, say: nothing to do with the image
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if data is None:
        raise OSError(f"an image's decoder gave no answer in {PATIENCE_S} s")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL:
            raise OSError("an image's decoder was killed from outside; is memory short?")
        raise RejectedImageError(
            "too costly" if number == signal.SIGPROF else "crash", died_of(number)
        )
    if status:
        raise RejectedImageError("crash", "the decoder's process ended without an answer")
    head, _, jpeg = data.partition(b"\n")
    told = json.loads(head)
    if "reason" in told:
        raise RejectedImageError(told["reason"], told["detail"])
    return jpeg, told["width"], told["height"]


def _read_all(descriptor: int) -> bytes | None:
    """What comes through a pipe until its other end closes; None if that takes too long."""
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
    """A line of JSON, and after it the image."""
    try:
        jpeg, width, height = bounded(work)
    except RejectedImageError as error:
        return json.dumps({"reason": error.reason, "detail": error.detail}).encode() + b"\n"
    return json.dumps({"width": width, "height": height}).encode() + b"\n" + jpeg


def died_of(number: int) -> str:
    """What a signal that ended a decoder means, in words."""
    if number == signal.SIGPROF:
        return f"takes more than {IMAGE_CPU_S:g} s to decode"
    return f"crashed the decoder ({signal.Signals(number).name})"
