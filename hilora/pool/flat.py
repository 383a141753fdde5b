"""An adapter's factors in one block of host memory for each place that they go to, so that each goes there at once.

An adapter has some hundreds of small tensors. Copied to a card one by one, each from memory that the system may page
out, they take longer to start than to copy; a page-locked block is copied while the card computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hilora.types import Factors

Placement = tuple[torch.device, torch.dtype]
"""Where a module computes, and in which dtype."""
Lies = tuple[tuple[str, torch.Size, torch.Size], ...]
"""Name of each site in a block, shapes of its `down` and `up`, which follow each other."""


@dataclass(frozen=True)
class Block:
    """Factors of one dtype that go to one place.

    Attributes:
        data: (number,) all factors, one after another.
        lies: which they are.
        goes: where to, and what they become there.
    """

    data: Tensor
    lies: Lies
    goes: Placement

    def views(self) -> Factors:
        """The factors, as views."""
        shapes = [shape for _, *both in self.lies for shape in both]
        parts = iter(self.data.split([shape.numel() for shape in shapes]))
        return {name: (next(parts).view(down), next(parts).view(up)) for name, down, up in self.lies}


class Flat(dict[str, tuple[Tensor, Tensor]]):
    """Factors that are views of a few blocks.

    Args:
        blocks: that hold them.

    Attributes:
        num_bytes: of the blocks. Page-locked ones take a power of two, to be used again by others.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        for block in blocks:
            self.update(block.views())
        self.num_bytes = sum(_taken(block.data) for block in blocks)

    def moved(self, move: Callable[[Block], Tensor]) -> Flat:
        """The same factors elsewhere.

        Args:
            move: gives what becomes of a block's data.
        """
        return Flat([Block(move(block), block.lies, block.goes) for block in self.blocks])


def pack(factors: Factors, places: Mapping[str, Placement]) -> Flat:
    """Factors copied into blocks, page-locked where they go to a card; dtypes stay as they are.

    Args:
        factors: of one adapter, in host memory.
        places: where each site's module computes.
    """
    groups: dict[tuple[torch.dtype, Placement], list[str]] = {}
    for name, (down, _) in factors.items():
        groups.setdefault((down.dtype, places[name]), []).append(name)
    blocks = []
    for (dtype, goes), names in groups.items():
        parts = [factor.reshape(-1) for name in names for factor in factors[name]]
        data = room(sum(map(len, parts)), dtype, locked=goes[0].type == "cuda")
        torch.cat(parts, out=data)
        blocks.append(Block(data, tuple((n, factors[n][0].shape, factors[n][1].shape) for n in names), goes))
    return Flat(blocks)


def room(count: int, dtype: torch.dtype, *, locked: bool) -> Tensor:
    """Host memory for so many numbers, page-locked or not."""
    return torch.empty(count, dtype=dtype, pin_memory=locked)


def placed(block: Block) -> Tensor:
    """A block's data where it goes, in the dtype that it has there; on the current stream, waiting for nothing."""
    where, dtype = block.goes
    return block.data.to(where, non_blocking=True).to(dtype)


def _taken(data: Tensor) -> int:
    size = data.numel() * data.element_size()
    return 1 << (size - 1).bit_length() if size and data.device.type == "cpu" and data.is_pinned() else size
