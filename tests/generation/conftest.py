"""The tests of generation run in one thread."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run many small layers without waiting for other threads.

    Beside other work, each layer would wait for a thread that has no core: a block of images then
    takes up to 7 s instead of 15 ms.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
