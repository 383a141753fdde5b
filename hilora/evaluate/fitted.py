"""A table that is whole on any screen: cells wrap between words, columns that find no room go below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Column, Table


class Fitted(Table):
    """A rich table without lines that cuts nothing; its first column, the names, stands before each part of it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Segment]:
        """Part by part, with an empty line between them."""
        gap = self.padding[1] + self.padding[3]
        sizes = [_sizes(console, options, column) for column in self.columns]
        beside = max((size.minimum for size in sizes[1:]), default=0)  # the least that names must leave
        names = max(1, min(sizes[0].maximum, options.max_width - beside - 2 * gap))
        sizes[0] = Measurement(names, sizes[0].maximum)
        for number, part in enumerate(parts([size.minimum + gap for size in sizes], options.max_width)):
            widths = share_width([sizes[i] for i in part], options.max_width - gap * len(part))
            columns = [replace(self.columns[i], width=w, overflow="fold") for i, w in zip(part, widths, strict=True)]
            table = Table(*columns, box=None, pad_edge=self.pad_edge, header_style=self.header_style)
            table.rows = self.rows
            if number:
                yield Segment.line()
            yield table


def _sizes(console: Console, options: ConsoleOptions, column: Column) -> Measurement:
    """The longest word of a column and its longest cell."""
    found = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
    return Measurement(max(1, *(size.minimum for size in found)), max(1, *(size.maximum for size in found)))


def parts(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Columns side by side as far as there is room, the first before each part."""
    part = [0]
    for i in range(1, len(widths)):
        if len(part) > 1 and sum(widths[j] for j in (*part, i)) > room:
            yield part
            part = [0]
        part.append(i)
    yield part


def share_width(sizes: Sequence[Measurement], room: int) -> list[int]:
    """Widths as wide as the cells; where that is too much, the widest column gives way down to its longest word."""
    widths = [size.maximum for size in sizes]
    while sum(widths) > room:
        able = [i for i, size in enumerate(sizes) if widths[i] > size.minimum]
        if not able:
            able = [i for i, width in enumerate(widths) if width > 1]  # a word wider than the screen is folded
        if not able:
            break
        widths[max(able, key=lambda i: widths[i])] -= 1
    return widths
