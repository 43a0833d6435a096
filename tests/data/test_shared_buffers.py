"""Shared buffers: taken, handed over, and free again when nobody looks at them."""

import gc
import pickle

import numpy as np
import torch

from pipeline.data.batch import Batch
from pipeline.data.shared_buffers import BatchInBuffer, SharedBuffers

SHAPE = (2, 4, 4, 3)


def test_each_worker_has_buffers_of_its_own() -> None:
    buffers = SharedBuffers(SHAPE, np.dtype(np.uint8), workers=2, num_each=2)
    taken = [buffers.take(worker) for worker in (0, 1, 0, 1)]
    assert sorted(number for number in taken if number is not None) == [0, 1, 2, 3]
    assert buffers.take(0) is None
    assert buffers.take(1) is None


def test_buffers_do_not_overlap() -> None:
    buffers = SharedBuffers(SHAPE, np.dtype(np.uint8), workers=1, num_each=3)
    for number in range(3):
        buffers.array(number)[:] = number + 1
    for number in range(3):
        assert buffers.array(number).shape == SHAPE
        assert (buffers.array(number) == number + 1).all()


def test_a_buffer_is_free_again_when_the_last_view_of_its_tensor_is_gone() -> None:
    buffers = SharedBuffers(SHAPE, np.dtype(np.uint8), workers=1, num_each=1)
    number = buffers.take(0)
    assert number is not None
    images = SharedBuffers.receive(buffers.number, number)
    view = images[1:, 2]
    del images
    gc.collect()
    assert buffers.take(0) is None
    del view
    gc.collect()
    assert buffers.take(0) == number


def test_a_batch_arrives_whole_with_its_images_in_the_buffer() -> None:
    buffers = SharedBuffers(SHAPE, np.dtype(np.uint8), workers=1, num_each=1)
    number = buffers.take(0)
    assert number is not None
    pixels = buffers.array(number)
    pixels[:] = np.arange(pixels.size, dtype=np.uint8).reshape(SHAPE)
    tokens, weights = torch.arange(12).view(2, 2, 3), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    batch = Batch(torch.from_numpy(pixels), tokens, weights, [7, "x"], ["bad: crc32"])
    sent = pickle.dumps(BatchInBuffer(buffers, number, batch))
    received = pickle.loads(sent)
    assert isinstance(received, Batch)
    for name in ("images", "tokens", "weights"):
        one, other = getattr(received, name), getattr(batch, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert (received.ids, received.bad) == (batch.ids, batch.bad)
    pixels[0, 0, 0, 0] = 99
    assert received.images[0, 0, 0, 0] == 99  # the same memory, not a copy
