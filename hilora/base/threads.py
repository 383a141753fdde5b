"""Small matrices on one thread: handing a few rows to others costs more than the work, far more on a busy machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Depth(threading.local):
    """How many blocks this thread is inside of."""

    value = 0


MANY_ROWS = 2000
"""Matrices of more rows than that are worth several threads."""
_depth = _Depth()
_lock = threading.Lock()
_inside, _before = 0, 0
"""Threads that are inside of a block, and the number that the first of them found."""


@contextmanager
def one_thread(rows: int = 0, most: int = MANY_ROWS) -> Iterator[None]:
    """PyTorch's work of this block, or of a function so decorated, on one thread; afterwards as before.

    Where the number is one for all threads, it stays while one of them is inside, and then is what the first found.

    Args:
        rows: of the block's matrices, or another measure of its work.
        most: with more rows than that nothing changes.
    """
    global _inside, _before  # noqa: PLW0603
    if _depth.value or rows > most:
        yield
        return
    with _lock:
        _before = _before if _inside else torch.get_num_threads()
        _inside += 1
    _depth.value = 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _depth.value = 0
        with _lock:
            _inside -= 1
            torch.set_num_threads(_before)
