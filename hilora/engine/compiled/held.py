"""Keys and values of rows, each in a place of its own: a row's tokens lie from its first column on.

transformers' static layers keep one length for all rows. Here each row writes at its own: a number in a buffer, which
a captured step reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from hilora.engine.rectangle import Rectangle


class Places(CacheLayerMixin):
    """A layer of a cache: (row, head, column, dim) keys and values, of which a step writes one column of each row.

    Args:
        keys, values: as they are kept.
        held: (row,) tokens that each row holds: the column that it writes next.
    """

    is_compileable = True
    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, held: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.held = keys, values, held
        self.rows = torch.arange(len(held), device=held.device)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        """It is there from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (row, head, 1, dim); returns all that attention reads."""
        self.keys[self.rows, :, self.held] = key_states[:, :, 0]
        self.values[self.rows, :, self.held] = value_states[:, :, 0]
        return self.keys, self.values

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Columns, and where the first one is; the step brings its own mask."""
        return self.keys.shape[2], 0

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Rows differ; the step brings its own positions."""
        return 0

    def get_max_length(self) -> int:
        """Columns."""
        return self.keys.shape[2]

    get_max_cache_shape = get_max_length  # its name before version 5.23


class Fixed:
    """Keys and values of so many rows, of so many tokens each.

    Args:
        like: (head, dim, dtype, device) of the keys, and of the values, of each layer.
        rows, tokens: to have room for.

    Attributes:
        lengths: tokens held by each row that there is.
    """

    def __init__(self, like: Sequence[tuple[Tensor, Tensor]], rows: int, tokens: int) -> None:
        self.rows, self.tokens, self.lengths = rows, tokens, list[int]()
        with torch.inference_mode(False):
            self.buffers = [tuple(_zeros(each, rows, tokens) for each in layer) for layer in like]

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        return sum(each.numel() * each.element_size() for layer in self.buffers for each in layer)

    def cache(self, rows: int, tokens: int, held: Tensor) -> Any:
        """A part of it as a model reads it; `held` (row,) is where rows write next."""
        found: list[Any] = []
        for keys, values in self.buffers:
            found.append(Places(keys[:rows, :, :tokens], values[:rows, :, :tokens], held))
        return Cache(layers=found)

    def take(self, other: Rectangle) -> None:
        """The rows of a rectangle, which is empty then, behind its own."""
        start, end = len(self.lengths), other.frame.end
        for mine, theirs in zip(self.buffers, other.cache.layers, strict=True):
            for buffer, source in zip(mine, theirs.buffers, strict=True):
                for row, length in enumerate(other.lengths):
                    buffer[start + row, :, :length] = source[row, :, end - length : end]
        self.lengths += other.lengths
        other.drop()

    def leave(self, places: Sequence[int]) -> list[int]:
        """Give up rows. Returns where each row that stays was before, in their order now."""
        stay = [row for row in range(len(self.lengths)) if row not in set(places)]
        order = [row for row in stay if row < len(stay)]
        last = [row for row in stay if row >= len(stay)]
        for place in range(len(stay)):  # holes are filled with the last rows
            if place in set(places):
                was = last.pop()
                order.insert(place, was)
                for buffer in (each for layer in self.buffers for each in layer):
                    buffer[place, :, : self.lengths[was]] = buffer[was, :, : self.lengths[was]]
        self.lengths = [self.lengths[was] for was in order]
        return order

    def drop(self) -> None:
        """Hold no rows."""
        self.lengths = []


def _zeros(like: Tensor, rows: int, tokens: int) -> Tensor:
    return torch.zeros(rows, like.shape[1], tokens, like.shape[3], dtype=like.dtype, device=like.device)
