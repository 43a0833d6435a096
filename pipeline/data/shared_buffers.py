"""Shared memory in which loader workers hand images over; each buffer is used again and again.

What is said of images here is true of stored features as well.
"""

import itertools
import math
import weakref
from collections.abc import Mapping
from multiprocessing.sharedctypes import RawArray
from typing import Any, ClassVar

import numpy as np
import torch

from pipeline.data.batch import Batch


class SharedBuffers:
    """Image buffers that the training process shares with its loader workers.

    By default torch takes new shared memory for each batch. The kernel then clears and maps all its
    pages, which takes a third of the time of decoding the images. Here each worker has a few
    buffers of its own. It fills one and sends its number; the tensor that the training process
    receives lies in that buffer. The buffer is free again when the last view of the tensor is gone.

    Args:
        shape: of one buffer, (B, S, S, 3).
        dtype: of its numbers; of images uint8.
        workers: number of loader workers.
        num_each: buffers of each worker.
    """

    _numbers = itertools.count()
    _by_number: ClassVar["weakref.WeakValueDictionary[int, SharedBuffers]"] = (
        weakref.WeakValueDictionary()
    )

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype, workers: int, num_each: int
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.num_each = num_each
        self._memory = RawArray("B", workers * num_each * math.prod(shape) * dtype.itemsize)
        self._taken = RawArray("B", workers * num_each)  # a flag each: no locks, no messages
        self.number = next(self._numbers)
        self._by_number[self.number] = self

    def take(self, worker: int) -> int | None:
        """The number of a free buffer of this worker; None if all of them are in use.

        Only the worker itself takes its buffers, so that no lock is needed.
        """
        for buffer in range(worker * self.num_each, (worker + 1) * self.num_each):
            if not self._taken[buffer]:
                self._taken[buffer] = 1
                return buffer
        return None

    def array(self, buffer: int) -> np.ndarray:
        """The memory of a buffer, as an array of `shape`."""
        size = math.prod(self.shape)
        memory = np.frombuffer(self._memory, self.dtype, size, buffer * size * self.dtype.itemsize)
        return memory.reshape(self.shape)

    @classmethod
    def receive(cls, number: int, buffer: int) -> torch.Tensor:
        """In the training process: the images that a worker put into a buffer.

        Args:
            number: of the `SharedBuffers`.
            buffer: of those, the one that is free again when the tensor is gone.
        """
        buffers = cls._by_number[number]
        array = buffers.array(buffer)
        weakref.finalize(array, buffers._taken.__setitem__, buffer, 0)
        return torch.from_numpy(array)  # its storage keeps this very array alive


class BatchInBuffer:
    """A batch on its way from a worker. Unpickled in the training process it is a `Batch`.

    torch's own conversions leave an object of this class as it is.

    Args:
        buffers: the worker's copy of the buffers.
        buffer: number of the buffer that holds the images.
        batch: its images lie in that buffer.
    """

    def __init__(self, buffers: SharedBuffers, buffer: int, batch: Batch) -> None:
        # Arrays go through the pipe to the training process; a tensor costs a file descriptor.
        others = {
            name: value.numpy() if isinstance(value, torch.Tensor) else value
            for name, value in batch._asdict().items()
            if name != "images"
        }
        self._parts = (buffers.number, buffer, others)

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive_batch, self._parts


def _receive_batch(number: int, buffer: int, others: Mapping[str, Any]) -> Batch:
    images = SharedBuffers.receive(number, buffer)
    fields: dict[str, Any] = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in others.items()
    }
    return Batch(images=images, **fields)
