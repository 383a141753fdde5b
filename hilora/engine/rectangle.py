"""Keys and values of rows of different lengths: one rectangle, its right edge where all rows are now.

    columns   begin ........ end            a row of length n holds the last n columns; what lies before is masked
    row 0     . . . a a a a a a a
    row 1     . . . . . . . b b b           a row that joins is written into the next free row, at the right edge;
    row 2     . . c c c c c c c c           one that leaves gives its place to the last

So joining and leaving move the keys and values of one row, not those of all. Columns that are padding for every row
are left out of what attention reads. Buffers have spare rows and columns, and are copied only when these are used up.
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
            self.buffers = tuple(  # type: ignore[assignment]
                each.new_zeros(rows, each.shape[1], columns, each.shape[3]) for each in (key_states, value_states)
            )
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

    def resize(self, size: tuple[int, int], shift: int) -> None:
        """Other buffers; what they hold moves by some columns."""
        self.size = size
        if self.buffers is not None:
            frame = self.frame
            where = slice(frame.begin + shift, frame.end + shift)
            self.buffers = tuple(_wider(each, size, frame, where) for each in self.buffers)  # type: ignore[assignment]


def _wider(old: Tensor, size: tuple[int, int], frame: Frame, where: slice) -> Tensor:
    new = old.new_zeros(size[0], old.shape[1], size[1], old.shape[3])
    new[: frame.rows, :, where] = old[: frame.rows, :, frame.begin : frame.end]
    return new


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
        held = (layer.buffers for layer in self.cache.layers if layer.buffers is not None)
        return sum(each.numel() * each.element_size() for pair in held for each in pair)

    @property
    def mask(self) -> Tensor:
        """(row, width) 1 where a row holds a token."""
        starts = self.frame.width - torch.tensor(self.lengths)[:, None]
        return (torch.arange(self.frame.width) >= starts).long()

    def open(self, rows: int) -> None:
        """The first rows, which hold nothing yet."""
        assert not self.lengths, "a rectangle is opened once"
        self._reserve(rows, 0, 0)
        self.lengths, self.frame.rows = [0] * rows, rows

    def make_room(self, new: int) -> None:
        """See to it that so many columns fit behind the right edge."""
        self._reserve(self.frame.rows, self.frame.width, new)

    def grew(self, new: Sequence[int]) -> None:
        """So many tokens were written for each row, their last one at the new right edge."""
        self.frame.end += max(new)
        self.lengths = [held + more for held, more in zip(self.lengths, new, strict=True)]
        self._trim()

    def join(self, other: Rectangle) -> None:
        """Take the rows of another rectangle, which is empty then."""
        mine, theirs = self.frame, other.frame
        self._reserve(mine.rows + theirs.rows, theirs.width, 0)
        rows, columns = slice(mine.rows, mine.rows + theirs.rows), slice(mine.end - theirs.width, mine.end)
        for own, new in zip(self.cache.layers, other.cache.layers, strict=True):
            if new.buffers is None:  # a layer that shares another one's
                continue
            for buffer, source in zip(own.buffers, new.buffers, strict=True):
                buffer[rows, :, columns] = source[: theirs.rows, :, theirs.begin : theirs.end]
            new.buffers = new.keys = new.values = None
        mine.rows += theirs.rows
        self.lengths += other.lengths
        other.lengths, theirs.rows = [], 0
        self._trim()

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
        return order

    def _trim(self) -> None:
        self.frame.begin = self.frame.end - max(self.lengths, default=0)
        for layer in self.cache.layers:
            layer.show()

    def _reserve(self, rows: int, width: int, new: int) -> None:
        """Buffers with so many rows, columns before the right edge, and columns behind it."""
        high, wide = self.size
        frame, width = self.frame, max(width, self.frame.width)
        if rows <= high and width <= frame.end and frame.end + new <= wide:
            return
        self.size, shift = (max(rows, high), width + new + ROOM), width - frame.end
        for layer in self.cache.layers:
            layer.resize(self.size, shift)
        frame.begin, frame.end = frame.begin + shift, frame.end + shift
