"""Memory in which loader processes hand images over, used again instead of allocated again."""

import itertools
import math
import weakref
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from typing import Any, ClassVar

import numpy as np
import torch

from pipeline.data.batch import Batch, ImageId


class SharedBuffers:
    """Memory for images that the loader's processes share, used again once nobody sees it.

    Left to itself, torch takes fresh shared memory for each batch. The kernel has to clear and map
    all its pages, which takes a third of the time of decoding the pictures. Here a worker fills one
    of its own buffers and sends the number; the receiver's tensor lies in that buffer, which is
    free again when the last view of the tensor is gone.
    """

    _numbers = itertools.count()
    _by_number: ClassVar["weakref.WeakValueDictionary[int, SharedBuffers]"] = (
        weakref.WeakValueDictionary()
    )

    def __init__(self, shape: tuple[int, ...], workers: int, num_each: int) -> None:
        self.shape = shape
        self.num_each = num_each
        self._memory = RawArray("B", workers * num_each * math.prod(shape))
        self._taken = RawArray("B", workers * num_each)  # a flag each: no locks, no messages
        self.number = next(self._numbers)
        self._by_number[self.number] = self

    def take(self, worker: int) -> int | None:
        """A free buffer of this worker, which alone takes from its own; None if all are in use."""
        for buffer in range(worker * self.num_each, (worker + 1) * self.num_each):
            if not self._taken[buffer]:
                self._taken[buffer] = 1
                return buffer
        return None

    def pixels(self, buffer: int) -> np.ndarray:
        """The memory of a buffer."""
        size = math.prod(self.shape)
        memory = np.frombuffer(self._memory, np.uint8, size, buffer * size)
        return memory.reshape(self.shape)

    @classmethod
    def receive(
        cls,
        number: int,
        buffer: int,
        tokens: np.ndarray,
        weights: np.ndarray,
        ids: list[ImageId],
        bad: list[str],
    ) -> Batch:
        """The batch whose images a worker put into a buffer, which is free when they are."""
        buffers = cls._by_number[number]
        pixels = buffers.pixels(buffer)
        weakref.finalize(pixels, buffers._taken.__setitem__, buffer, 0)
        images = torch.from_numpy(pixels)  # its storage keeps this very array alive
        return Batch(images, torch.from_numpy(tokens), torch.from_numpy(weights), ids, bad)


@dataclass(frozen=True)  # of a class that torch's own conversions leave as it is
class BatchInBuffer:
    """A batch on its way from a worker: the receiver's unpickling makes a Batch of it."""

    number: int
    buffer: int
    tokens: np.ndarray  # arrays go through the pipe: a tensor costs a file descriptor each
    weights: np.ndarray
    ids: list[ImageId]
    bad: list[str]

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.number, self.buffer, self.tokens, self.weights, self.ids, self.bad)
        return SharedBuffers.receive, parts
