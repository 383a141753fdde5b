"""Keys and values of rows of different lengths: one rectangle, its right edge where all rows are now.

    columns   begin ........ end            a row of length n holds the last n columns; what lies before is masked
    row 0     . . . a a a a a a a
    row 1     . . . . . . . b b b           a row that joins is written into the next free row, at the right edge;
    row 2     . . c c c c c c c c           one that leaves gives its place to the last

So joining and leaving move the keys and values of one row, not those of all. Columns that are padding for every row
are left out of what attention reads. Buffers have spare rows and columns. They are replaced only when these are used
up, or half of the rows are spare: layer by layer, so that one layer at a time is there twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Columns for new tokens, beyond those that are needed."""


def most_room(rows: int, tokens: int) -> int:
    """Tokens that new buffers have room for at most, of so many rows that come to hold so many tokens."""
    return rows * (tokens + ROOM)


@dataclass
class Frame:
    """Which part of the buffers holds rows: the same in all layers."""

    rows: int = 0
    begin: int = 0
    end: int = 0

    @property
    def width(self) -> int:
        """Columns that attention reads."""
        return self.end - self.begin


class Held(DynamicLayer):
    """A layer of a cache: (row, head, column, dim) keys and values, as views of longer and higher buffers.

    Args:
        frame: which part of them.
        size: (rows, columns) of buffers that are made when the first keys come.
    """

    def __init__(self, frame: Frame, size: tuple[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.frame, self.size = frame, size
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (row, head, new, dim) behind the right edge; returns all that attention reads."""
        if self.buffers is None:
            self.lazy_initialization(key_states, value_states)
            rows, columns = self.size
            self.buffers = _zeros(key_states, rows, columns), _zeros(value_states, rows, columns)
        assert self.buffers is not None
        frame, stop = self.frame, self.frame.end + key_states.shape[-2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: frame.rows, :, frame.end : stop] = new
        self.keys, self.values = (buffer[: frame.rows, :, frame.begin : stop] for buffer in self.buffers)
        return self.keys, self.values

    def show(self) -> None:
        """Views of what the frame says."""
        if self.buffers is not None:
            frame = self.frame
            self.keys, self.values = (each[: frame.rows, :, frame.begin : frame.end] for each in self.buffers)

    @property
    def num_bytes(self) -> int:
        """Of its buffers."""
        return sum(each.numel() * each.element_size() for each in self.buffers or ())

    def resize(self, size: tuple[int, int], shift: int) -> None:
        """Buffers of this size, if they are of another; what they hold moves by some columns."""
        frame, is_same = self.frame, (size, 0) == (self.size, shift)
        self.size = size
        if is_same or self.buffers is None:
            return
        where = slice(frame.begin + shift, frame.end + shift)
        keys, values = (_zeros(each, *size) for each in self.buffers)
        for new, old in zip((keys, values), self.buffers, strict=True):
            new[: frame.rows, :, where] = old[: frame.rows, :, frame.begin : frame.end]
        self.buffers = keys, values
        self.keys, self.values = (each[: frame.rows, :, where] for each in self.buffers)  # those before go

    def take(self, other: Held, end: int) -> None:
        """The rows of another, which is empty then, behind its own; their right edge comes here."""
        if other.buffers is None or self.buffers is None:
            return  # a layer that shares another one's
        theirs = other.frame
        rows, columns = slice(self.frame.rows, self.frame.rows + theirs.rows), slice(end - theirs.width, end)
        for buffer, source in zip(self.buffers, other.buffers, strict=True):
            buffer[rows, :, columns] = source[: theirs.rows, :, theirs.begin : theirs.end]
        other.drop()

    def drop(self) -> None:
        """Hold nothing."""
        self.buffers = self.keys = self.values = None


def _zeros(like: Tensor, rows: int, columns: int) -> Tensor:
    return like.new_zeros(rows, like.shape[1], columns, like.shape[3])


@dataclass(eq=False)
class Rectangle:
    """Rows that take their steps together.

    Args:
        layers: how many layers of keys and values the model has.
        size: (rows, columns) to have room for.
    """

    layers: int
    size: tuple[int, int]
    lengths: list[int] = field(default_factory=list)  # tokens held by each row
    frame: Frame = field(default_factory=Frame)

    def __post_init__(self) -> None:
        self.cache: Any = Cache(layers=[Held(self.frame, self.size) for _ in range(self.layers)])

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        return sum(layer.num_bytes for layer in self.cache.layers)

    @property
    def mask(self) -> Tensor:
        """(row, width) 1 where a row holds a token."""
        starts = self.frame.width - torch.tensor(self.lengths)[:, None]
        return (torch.arange(self.frame.width) >= starts).long()

    def open(self, rows: int) -> None:
        """The first rows, which hold nothing yet."""
        assert not self.lengths, "a rectangle is opened once"
        assert rows <= self.size[0]
        self.lengths, self.frame.rows = [0] * rows, rows

    def laid(self, parts: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor, Tensor]:
        """Some more tokens of each row, at the right edge: (row, column) ids, which are no padding, and positions."""
        longest = max(map(len, parts))
        ids = torch.tensor([[fill] * (longest - len(part)) + list(part) for part in parts])
        fresh = (torch.arange(longest) >= torch.tensor([longest - len(part) for part in parts])[:, None]).long()
        places = torch.tensor(self.lengths)[:, None] + fresh.cumsum(1) - 1
        return ids, fresh, places.clamp_min(0)

    def make_room(self, new: int) -> None:
        """See to it that so many columns fit behind the right edge."""
        self._resize(self._sized(self.frame.rows, self.frame.width, new))

    def grew(self, columns: int, new: Sequence[int]) -> None:
        """So many columns were written; for each row, so many of them hold tokens that count, up to the last."""
        self.frame.end += columns
        self.lengths = [held + more for held, more in zip(self.lengths, new, strict=True)]
        self._trim()

    def join(self, other: Rectangle) -> None:
        """Take the rows of another rectangle, which is empty then."""
        mine, theirs = self.frame, other.frame
        shift = self._sized(mine.rows + theirs.rows, theirs.width, 0)
        for own, new in zip(self.cache.layers, other.cache.layers, strict=True):
            own.resize(self.size, shift)
            own.take(new, mine.end + shift)
        self._move(shift)
        mine.rows += theirs.rows
        self.lengths += other.lengths
        other.drop()
        self._trim()

    def drop(self) -> None:
        """Hold nothing."""
        self.lengths, self.size, self.frame.rows = [], (0, 0), 0
        for layer in self.cache.layers:
            layer.drop()

    def leave(self, places: Sequence[int]) -> list[int]:
        """Give up rows. Returns where each row that stays was before, in their order now."""
        order, gone, place = list(range(self.frame.rows)), set(places), 0
        while place < len(order):
            if order[place] in gone:
                last = order.pop()
                if place < len(order):
                    order[place] = last
            else:
                place += 1
        frame = self.frame
        for layer in self.cache.layers:
            for buffer in layer.buffers or ():
                for place, was in enumerate(order):
                    if place != was:
                        buffer[place, :, frame.begin : frame.end] = buffer[was, :, frame.begin : frame.end]
        self.lengths = [self.lengths[was] for was in order]
        frame.rows = len(order)
        self._trim()
        if 2 * frame.rows <= self.size[0]:
            self.size = frame.rows, frame.width + ROOM
            self._resize(frame.width - frame.end)
        return order

    def _trim(self) -> None:
        self.frame.begin = self.frame.end - max(self.lengths, default=0)
        for layer in self.cache.layers:
            layer.show()

    def _sized(self, rows: int, width: int, new: int) -> int:
        """Note the size of buffers with so many rows, columns before the right edge, and columns behind it.

        Returns by how many columns the right edge moves.
        """
        high, wide = self.size
        frame, width = self.frame, max(width, self.frame.width)
        if rows <= high and width <= frame.end and frame.end + new <= wide:
            return 0
        self.size = rows, width + new + ROOM
        return width - frame.end

    def _resize(self, shift: int) -> None:
        """Buffers of the size that is noted."""
        for layer in self.cache.layers:
            layer.resize(self.size, shift)
        self._move(shift)

    def _move(self, shift: int) -> None:
        self.frame.begin, self.frame.end = self.frame.begin + shift, self.frame.end + shift
