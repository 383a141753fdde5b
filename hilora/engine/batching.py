"""Which rows of a batch may run together.

A padded row in a batch answers as the row does alone only if the base model lets it; and it may join and leave others
only if every layer's cache can be cut by row. `engine.probe` finds out of which class a base is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum


class Batching(StrEnum):
    """What rows of different lengths may do on a base model."""

    OPEN = "open"  # rows are padded, join and leave at any step
    CLOSED = "closed"  # rows are padded, start together and stay until the last one ends
    ALONE = "alone"  # padding, or other rows, would change an answer: each row runs by itself


ServeRows = Callable[[Sequence[int]], AbstractContextManager[object]]
"""Places of rows -> the model serving these rows, in that order, while it is open."""
